"""The base of an adapter against the model of a run: by its name, or by the weights below the adapter where
both are on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from fedsa_lora.errors import ModelError
from fedsa_lora.tasks.checkpoint import weight_files
from fedsa_lora.tasks.model_settings import ModelSettings, resolve


def check_base(folder: Path, base: str, settings: ModelSettings, layers: Sequence[str]) -> None:
    """Raise ModelError where an adapter in ``folder`` over ``base``, as its config names it, is of another
    model than that of the run. ``layers`` are those with an adapter."""
    if base and base == settings.path:
        return
    beside = folder / base
    here = str(beside if beside.is_dir() else Path(base).expanduser())
    if not base or not Path(here).is_dir():
        raise _other(base or "none", settings, "its adapter_config.json names it so")
    place = resolve(settings.path)
    if Path(here).resolve() == Path(place).resolve():
        return
    names = [f"{layer}.weight" for layer in layers]
    theirs = first_rows(weight_files(here, None), names)
    ours = first_rows(weight_files(place, settings.revision), names)
    common = theirs.keys() & ours.keys()
    if not common:
        raise _other(here, settings, "their weights have no names in common")
    for name in sorted(common):
        if not _equal(theirs[name], ours[name], settings.held):
            raise _other(here, settings, f"their {name} differ")


def _other(base: str, settings: ModelSettings, reason: str) -> ModelError:
    return ModelError(
        f"model.adapter: {settings.adapter} is of another base, {base}, and model.path is {settings.path} "
        f"({reason}): set model.path to the adapter's base; where it is a copy of that, write model.path as "
        "base_model_name_or_path into adapter_config.json",
        sent="the adapter to start from is of another base",
        key="model.adapter",
    )


def first_rows(files: Iterable[Path], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The first row of tensors in files of safetensors, by ``names`` of which a file may have a further or a
    missing beginning, as models with and without a head do."""
    found = {}
    for file in files:
        if file.suffix != ".safetensors":
            continue
        with safe_open(file, "pt") as tensors:
            held = set(tensors.keys())
            for name in names:
                keys = [
                    key for key in held if f".{key}".endswith(f".{name}") or f".{name}".endswith(f".{key}")
                ]
                if len(keys) == 1:
                    found[name] = tensors.get_slice(keys[0])[:1]
    return found


def _equal(one: torch.Tensor, other: torch.Tensor, held: torch.dtype) -> bool:
    """Equality in the coarsest of the types that are at hand."""
    coarsest = min((one.dtype, other.dtype, held), key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(coarsest), other.to(coarsest))
