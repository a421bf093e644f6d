"""Choice of the layers that get an adapter, by what models have in common rather than by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedsa_lora.errors import ModelError
from fedsa_lora.learning.settings import Intent, Towers
from fedsa_lora.tasks.heads import block, head_of
from fedsa_lora.tasks.pooling import is_unread
from fedsa_lora.tasks.towers import TOWERS, is_dual_encoder, tower

LINEAR = (nn.Linear, Conv1D)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ADAPTABLE = (*LINEAR, nn.Embedding, *CONVOLUTIONS)

_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
_KERNELS = (1, 3)  # sides of the kernels that lora.targets=convolutions takes
_PAIRS = (["query", "value"], ["q_proj", "v_proj"], ["q_lin", "v_lin"])


def choose(model: nn.Module, intent: Intent, towers: Towers | None = None) -> list[str] | str:
    """Chooses what PEFT calls ``target_modules``: names, last parts of names, or one regular expression.

    ``default``: PEFT's choice for the architecture, elsewhere query and value, in a model whose blocks have
    no linear layer its convolutions; ``attention``: the linear layers of attention, q, k, v and output;
    ``all_linear``: those and the MLP's. These two look only into the repeated blocks, so never at a head, a
    pooler or an output embedding. ``convolutions``: those with a kernel of 1 x 1 or 3 x 3, but for the
    model's first one, its head, and grouped (depthwise) or dilated ones, which get no adapter.
    In a dual encoder this is said of each of its ``towers``, by default of both; one without linear layers,
    as of convolutions, then has adapters on those of its convolutions that have no grouping and 1 x 1 pixels.
    Raises ModelError when the model has no such layer, or no towers.
    """
    if is_dual_encoder(model):
        chosen = TOWERS if towers in (None, "both") else (towers,)
        return [
            f"{each}_model.{name}" for each in chosen for name in choose_in_tower(tower(model, each), intent)
        ]
    if towers is not None:
        raise ModelError(
            f"lora.towers={towers}: {type(model).__name__} has no towers, which are those of a model of "
            "images and texts, such as CLIP; set lora.towers=null"
        )
    if intent == "default":
        return _default(model)
    names = _convolutions(model) if intent == "convolutions" else _linear(model)
    if intent == "attention":
        names = [name for name in names if _ATTENTION.search(name.removeprefix(block(name) or ""))]
    if not names:
        raise ModelError(
            f"{type(model).__name__} has no layers for lora.targets={intent}: set lora.target_modules, "
            f"for example from {leaves(model)}"
        )
    return names


def choose_in_tower(part: nn.Module, intent: Intent) -> list[str]:
    """The layers of a tower of a dual encoder that get an adapter, by their full names in it: as ``choose``
    has them, but for a tower without linear layers in blocks, of which it is the 1 x 1 convolutions."""
    if intent == "convolutions" or _linear(part):
        return list(find(part, choose(part, intent)))
    layers = dict(part.named_modules())
    return [name for name in _convolutions(part) if set(layers[name].kernel_size) == {1}]


def find(model: nn.Module, targets: list[str] | str) -> dict[str, nn.Module]:
    """The layers that the targets name, by full name, without those of the head.

    Raises ModelError when one of the named targets is nowhere, or only in the head, which is trained
    whole and gets no adapter.
    """
    head = head_of(model)
    modules = {
        name: module
        for name, module in model.named_modules()
        if name and not head.holds(name) and not is_unread(model, name)
    }
    if isinstance(targets, str):
        found = {name: module for name, module in modules.items() if re.fullmatch(targets, name)}
        lost = set() if found else {targets}
    else:
        wanted = set(targets)
        found = {name: module for name, module in modules.items() if not wanted.isdisjoint(_endings(name))}
        lost = wanted.difference(*(_endings(name) for name in found))
    if lost:
        raise ModelError(
            f"lora.target_modules: {sorted(lost)} not found in {type(model).__name__} (its head gets no "
            f"adapter); expected some of {leaves(model)}"
        )
    return found


def check_kinds(found: Mapping[str, nn.Module], what: str, *, linear_only: bool) -> None:
    """Raise ModelError naming the first layer that cannot carry the adapter ``what``."""
    kinds = LINEAR if linear_only else ADAPTABLE
    expected = " or ".join(kind.__name__ for kind in kinds)
    for name, module in found.items():
        if not isinstance(module, kinds):
            raise ModelError(f"{what}: {name} is a {type(module).__name__}; expected {expected}")
        if _is_grouped_or_dilated(module):
            raise ModelError(f"{what}: {name} is a grouped or dilated convolution; choose other targets")


def ranks_by_block(found: Mapping[str, nn.Module], ranks: list[int]) -> dict[str, int]:
    """One rank for each repeated block with adapters, in the model's order.

    Raises ModelError naming how many blocks there are when the ranks are not as many.
    """
    blocks = list(dict.fromkeys(b for name in found if (b := block(name))))
    if len(blocks) != len(ranks):
        named = f", {blocks[0]} to {blocks[-1]}" if blocks else ""
        raise ModelError(
            f"lora.layer_ranks has {len(ranks)} ranks, but the model has {len(blocks)} layers with "
            f"adapters{named}; give one rank for each"
        )
    return dict(zip(blocks, ranks, strict=True))


def leaves(model: nn.Module) -> list[str]:
    """The last parts of the names that may be targets."""
    head = head_of(model)
    names = [n for n, m in model.named_modules() if isinstance(m, ADAPTABLE) and not head.holds(n)]
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def _linear(model: nn.Module) -> list[str]:
    """The linear layers of the repeated blocks, but for those of the head."""
    head = head_of(model)
    layers = [name for name, module in model.named_modules() if isinstance(module, LINEAR) and block(name)]
    return [name for name in layers if not head.holds(name)]


def _convolutions(model: nn.Module) -> list[str]:
    """The convolutions that ``targets=convolutions`` stands for. The first one, the stem, reads the image
    itself and stays as it is."""
    head = head_of(model)
    found = {name: module for name, module in model.named_modules() if isinstance(module, CONVOLUTIONS)}
    return [
        name
        for place, (name, module) in enumerate(found.items())
        if place
        and not head.holds(name)
        and set(module.kernel_size) <= set(_KERNELS)
        and not _is_grouped_or_dilated(module)
    ]


def _is_grouped_or_dilated(module: nn.Module) -> bool:
    """True for a convolution that PEFT has no adapter for: it builds A without dilation, and cannot merge
    into groups."""
    return getattr(module, "groups", 1) > 1 or set(getattr(module, "dilation", (1,))) != {1}


def _endings(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[i:]) for i in range(len(parts))}


def _default(model: nn.Module) -> list[str] | str:
    known: Any = PEFT_DEFAULTS.get(getattr(getattr(model, "config", None), "model_type", None))
    if isinstance(known, str):
        return known
    available = leaves(model)
    if present := [name for name in known or () if name in available]:
        return present
    for pair in _PAIRS:
        if set(pair) <= set(available):
            return pair
    if not _linear(model) and (convolutions := _convolutions(model)):
        return convolutions
    raise ModelError(
        f"cannot infer LoRA targets for {type(model).__name__}: set lora.target_modules, for example from "
        f"{available}"
    )
