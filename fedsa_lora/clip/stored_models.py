"""Adapters by name, each in a folder of PEFT with a description, and their checks before they are loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedsa_lora.binding import bind
from fedsa_lora.clip.adapter import layer_of
from fedsa_lora.clip.base import Base
from fedsa_lora.clip.config import LoRAConfig
from fedsa_lora.clip.storage import absent, checked, made
from fedsa_lora.clip.wrapper import CLIPLoRAWrapper
from fedsa_lora.errors import ModelError, RunError
from fedsa_lora.files import locked, replaced, write_atomically
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.checkpoint import ADAPTER_WEIGHTS

INFO = "info.json"
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ModelInfo:
    """A saved adapter: its settings, the kinds of layers that it is on (the last parts of their names), its
    base, the number of values that it trains, the bytes of its tensors, and when it was saved (UTC, ISO
    8601)."""

    name: str
    config: LoRAConfig
    targets: list[str]
    base: Base
    trainable_parameters: int
    bytes: int
    saved: str

    @property
    def rank(self) -> int:
        """r of its settings."""
        return self.config.r


class LoRAModelManager:
    """Adapters that are saved, loaded, described and listed by name, in the folders ``NAME`` of a folder:
    ``adapter_config.json`` and ``adapter_model.safetensors`` of PEFT, and ``info.json``."""

    def __init__(self, model_dir: str | Path = "lora_models") -> None:
        self.folder = Path(model_dir).expanduser()

    def save_model(self, name: str, model: CLIPLoRAWrapper) -> Path:
        """Write what a model trains, in the place of what was there under that name, and return its folder.
        It is written whole or not at all.

        Raises ConfigError for what is no name, ModelError where the model has no LoRA, and RunError where it
        cannot be written.
        """
        folder, state = self.folder / checked(name), model.adapter.state()
        made(self.folder)
        if folder.exists() and not (folder / INFO).is_file():
            raise RunError(f"{folder} holds something other than a saved model: choose another name")
        info = ModelInfo(
            name=name,
            config=model.lora_config,
            targets=_kinds(model.adapter.layers),
            base=model.adapter.base,
            trainable_parameters=model.adapter.trainable_parameters,
            bytes=sum(value.numel() * value.itemsize for value in state.values()),
            saved=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with locked(self.folder, self._busy), replaced(folder) as new:
            model.adapter.save(new)
            write_atomically(new / INFO, json.dumps(asdict(info), indent=1).encode(), durable=False)
        return folder

    def load_model(self, name: str, model: CLIPLoRAWrapper) -> CLIPLoRAWrapper:
        """Overwrite what a model trains by a saved adapter, and return the model.

        Raises RunError where there is none of that name, and ModelError, which names the difference,
        where its rank, scale, layers or base differ, or it is truncated: nothing is overwritten then.
        """
        info, ours = self.get_model_info(name), model.adapter.state()
        file = self.folder / name / ADAPTER_WEIGHTS
        try:
            theirs = load_file(file)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{file} cannot be read ({error}): it is truncated or corrupted; save it again"
            ) from None
        fault = (
            _rank_fault(ours, theirs)
            or _targets_fault(ours, theirs)
            or info.base.difference(model.adapter.base)
            or _shape_fault(ours, theirs)
            or _scale_fault(model.lora_config, info.config)
        )
        if fault:
            raise ModelError(f"the saved model {name!r} does not fit: {fault}")
        model.adapter.load(theirs)
        return model

    def get_model_info(self, name: str) -> ModelInfo:
        """The description of a saved adapter. Raises RunError where there is none of that name, and
        ModelError where its description cannot be read."""
        path = self.folder / checked(name) / INFO
        try:
            node = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise absent("model", name, self.folder, self.list_models()) from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read ({error}): save the model again") from None
        faults: list[str] = []
        info = bind(ModelInfo, node, INFO, faults)
        if info is None:
            raise ModelError(
                f"{path} is not a description of a model ({'; '.join(faults)}): save the model again"
            )
        return info

    def list_models(self) -> list[str]:
        """The names of all saved adapters, sorted; none where there is no folder."""
        found = (path.parent.name for path in self.folder.glob(f"*/{INFO}"))
        return sorted(name for name in found if not name.startswith("."))

    def _busy(self, holder: str) -> RunError:
        return RunError(f"{holder} is saving a model in {self.folder}: try again when it has finished")


def _rank_fault(ours: Tensors, theirs: Tensors) -> str:
    mine, other = _ranks(ours), _ranks(theirs)
    for layer in sorted(mine.keys() & other.keys()):
        if mine[layer] != other[layer]:
            return (
                f"it has rank {other[layer]} on {layer}, and the model {mine[layer]}; set r={other[layer]} "
                "in its LoRAConfig"
            )
    return ""


def _targets_fault(ours: Tensors, theirs: Tensors) -> str:
    """Tensors on one side alone, over which PEFT passes without a word."""
    if ours.keys() == theirs.keys():
        return ""
    unexpected, missing = sorted(theirs.keys() - ours.keys()), sorted(ours.keys() - theirs.keys())
    there, here = listing(_kinds(map(layer_of, theirs))), listing(_kinds(map(layer_of, ours)))
    return (
        f"its targets differ: {len(unexpected)} of its {len(theirs)} tensors are not in the model, and "
        f"{len(missing)} of the model's {len(ours)} not in it (such as {(unexpected or missing)[0]}). It is "
        f"on {there}, the model on {here}; set target_modules, "
        "towers and components in its LoRAConfig as they were"
    )


def _shape_fault(ours: Tensors, theirs: Tensors) -> str:
    for name, value in ours.items():
        if value.shape != theirs[name].shape:
            return f"its {name} is {tuple(theirs[name].shape)}, that of the model {tuple(value.shape)}"
    return ""


def _scale_fault(ours: LoRAConfig, theirs: LoRAConfig) -> str:
    if math.isclose(ours.lora_alpha, theirs.lora_alpha):
        return ""
    return (
        f"it was trained with lora_alpha={theirs.lora_alpha:g}, and the model has {ours.lora_alpha:g}, so B "
        f"A would count {ours.lora_alpha / theirs.lora_alpha:g} times as much; set "
        f"lora_alpha={theirs.lora_alpha:g} in its LoRAConfig"
    )


def _ranks(tensors: Tensors) -> dict[str, int]:
    """r of each layer, the first dimension of A."""
    return {
        layer_of(name): int(value.shape[0])
        for name, value in tensors.items()
        if ".lora_A." in name or name.endswith(".lora_embedding_A")
    }


def _kinds(layers: Any) -> list[str]:
    """The last parts of the names of layers."""
    return sorted({layer.rpartition(".")[2] for layer in layers})
