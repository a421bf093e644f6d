"""Versions and machine that a run was made with."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("fedsa-lora", "flwr", "torch", "transformers", "peft", "ray", "datasets", "numpy")


def environment() -> dict[str, Any]:
    """Versions and machine of this process."""
    return {
        **{package.replace("-", "_"): _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
