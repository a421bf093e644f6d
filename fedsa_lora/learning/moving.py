"""Copies to the device that a model is on."""

from __future__ import annotations

import torch

from fedsa_lora.tasks.task import Batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device, as ``moved`` copies each tensor."""
    return {name: moved(tensor, device) for name, tensor in batch.items()}


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; to a GPU it goes from pinned memory, so that nothing waits for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
