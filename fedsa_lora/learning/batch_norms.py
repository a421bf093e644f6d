"""Batch norms beside adapters: they keep the statistics that they start with."""

from __future__ import annotations

from torch import nn
from torch.utils.hooks import RemovableHandle


def keep_statistics(model: nn.Module) -> list[RemovableHandle]:
    """Have batch norms use the statistics that they start with and keep them, until the handles are removed:
    running means are in no layout, and would carry one client's data to the next that a model serves."""
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return [norm.register_forward_pre_hook(_to_eval) for norm in norms]


def _to_eval(norm: nn.Module, _: object) -> None:
    norm.eval()
