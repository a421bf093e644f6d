"""The head of a model: the modules behind its backbone, which are trained whole beside the adapters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedsa_lora.tasks.towers import is_dual_encoder

_OWN_NAMES = ("classifier", "score")  # of a head where transformers has none, or is not the model's library
_BLOCK = re.compile(r"(.*?\.\d+)\.")


@dataclass(frozen=True)
class Head:
    """Modules that are trained whole: ``modules`` by name, those behind the backbone and the layers that the
    checkpoint of the backbone lacks. ``kept`` are the parameters of these that start from the checkpoint's
    values; all others start from a draw."""

    modules: tuple[str, ...]
    kept: frozenset[str] = frozenset()

    def holds(self, name: str) -> bool:
        """Membership of a module or a parameter, by its name in the model without adapters."""
        return any(name == module or name.startswith(f"{module}.") for module in self.modules)


def head_of(model: Any) -> Head:
    """The head of a model, with or without adapters: as ``assign_head`` set it, else as it is found."""
    base = unwrapped(model)
    assigned = getattr(base, "assigned_head", None)
    return assigned if isinstance(assigned, Head) else Head(behind_backbone(base))


def unwrapped(model: Any) -> Any:
    """The model inside PEFT's wrapper, where it is in one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def assign_head(model: Any, head: Head) -> None:
    """Set what ``head_of`` returns for a model."""
    model.assigned_head = head


def behind_backbone(model: nn.Module) -> tuple[str, ...]:
    """The children of a model that have parameters and lie behind its backbone; none in a language model,
    whose output embeddings belong to the backbone, and in a dual encoder, which compares images with texts.

    A model of transformers names its backbone (``base_model_prefix``). Where it has no part of that name, the
    head is its last child, unless that one repeats layers.
    """
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    prefix = getattr(model, "base_model_prefix", None)
    if prefix is None or is_dual_encoder(model):
        return tuple(name for name in children if name in _OWN_NAMES)
    if prefix in children:
        outputs: Any = model.get_output_embeddings()  # type: ignore[operator]
        return tuple(n for n in children if n != prefix and getattr(model, n) is not outputs)
    last = children[-1:]
    return tuple(n for n in last if not any(block(f"{n}.{m}.") for m, _ in getattr(model, n).named_modules()))


def layers_behind_blocks(model: nn.Module, missing: Iterable[str]) -> tuple[str, ...]:
    """The linear layers of a backbone, such as BERT's pooler, that lie behind its repeated blocks, or are
    called pooler wherever they are defined, and of which every parameter is ``missing``."""
    lacking = set(missing)
    modules = dict(model.named_modules())
    places = [place for place, name in enumerate(modules) if block(f"{name}.")]
    last_block = max(places, default=len(modules))
    return tuple(
        name
        for place, (name, module) in enumerate(modules.items())
        if (place > last_block or "pooler" in name.split("."))
        and isinstance(module, nn.Linear)
        and all(f"{name}.{parameter}" in lacking for parameter, _ in module.named_parameters())
    )


def block(name: str) -> str | None:
    """The repeated block that a layer is part of: its name up to the first number, None outside of all.

    A block is what papers call a transformer layer; T5 has those of its encoder and then its decoder.
    """
    found = _BLOCK.match(name)
    return found[1] if found else None


def outputs_by_class(model: nn.Module, head: Head, classes: int) -> frozenset[str]:
    """The parameters of the head with one row for each class."""
    named: Iterable[tuple[str, torch.Tensor]] = model.named_parameters()
    return frozenset(name for name, value in named if head.holds(name) and value.shape[:1] == (classes,))
