"""A start from an adapter that was trained before, a folder of PEFT, checked against the model of the run:
PEFT itself loads what fits and passes over the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fedsa_lora.errors import ModelError
from fedsa_lora.exchange.arrays import Arrays, Layout
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.lora import attach
from fedsa_lora.learning.names import PREFIX
from fedsa_lora.learning.settings import LoraSettings
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, stored_file
from fedsa_lora.tasks.heads import assign_head, head_of
from fedsa_lora.tasks.model_settings import ModelSettings, resolve
from fedsa_lora.tasks.pooling import MARK, SCALE, is_mean_pooled
from fedsa_lora.tasks.same_base import check_base

# Starts of an adapter that leave the weights below it as they were.
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")
# What makes of LoRA something else than h = W0 x + s B A x.
_OTHER = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
)


def adapted(
    backbone: nn.Module, lora: LoraSettings | None, seed: int, settings: ModelSettings
) -> AdapterModel:
    """A backbone with adapters, which start from those of ``settings.adapter`` where it names some, as
    ``attach`` makes them elsewhere. Raises ModelError where that adapter is of another base, rank, scale or
    of other layers."""
    if not settings.adapter:
        return AdapterModel(attach(backbone, lora, seed))
    adapter = read_adapter(settings.adapter)
    head = head_of(backbone)
    kept = frozenset(name for name in head.kept if name not in adapter.tensors)
    assign_head(backbone, replace(head, kept=kept))
    model = AdapterModel(attach(backbone, lora, seed))
    adapter.check(model, settings)
    model.given = adapter.values(model)
    return model


def read_adapter(path: str) -> GivenAdapter:
    """The adapter in a folder, or of a hub id. Raises ModelError where there is none that can be read."""
    place = resolve(path)
    config, weights = (
        stored_file(place, name, None, fetch=True) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    )
    if config is None or weights is None:
        raise ModelError(
            f"model.adapter: {path} holds no PEFT adapter; expected {ADAPTER_CONFIG} and "
            f"{ADAPTER_WEIGHTS} in it, as fedsa-lora export writes them",
            sent="the folder model.adapter holds no adapter",
            key="model.adapter",
        )
    try:
        known = dict(json.loads(config.read_text(encoding="utf-8")))
        tensors = load_file(weights)
    except (ValueError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"model.adapter: {path} cannot be read ({error}): it is truncated or corrupted; copy it again",
            sent="the adapter to start from is truncated or corrupted",
            key="model.adapter",
        ) from None
    named = {
        key.removeprefix(PREFIX).replace(".modules_to_save", ""): value for key, value in tensors.items()
    }
    return GivenAdapter(path, config.parent, known, named)


@dataclass(frozen=True)
class GivenAdapter:
    """An adapter in a ``folder``: its config, and its tensors by their names in a layout."""

    path: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    def check(self, model: AdapterModel, settings: ModelSettings) -> None:
        """Raise ModelError where a model of the run would not compute with it what it was trained to."""
        self._check_kind()
        layers = sorted(model.scales)
        check_base(self.folder, str(self.config.get("base_model_name_or_path") or ""), settings, layers)
        if self._folded != is_mean_pooled(model.module):
            ours, theirs = ("mean", "model") if is_mean_pooled(model.module) else ("model", "mean")
            raise self._fault(f"it was trained with model.pooling={theirs}, and the run has {ours}")
        self._check_layers(model.layout)
        self._check_shapes(model.layout)
        self._check_scales(model.scales)

    def values(self, model: AdapterModel) -> Arrays:
        """Every tensor that a model starts with from it, by name."""
        state = {name: value.float().numpy() for name, value in self.tensors.items()}
        if self._folded:
            state["classifier.weight"] = state["classifier.weight"] / SCALE
        return {name: state[name] for name in model.layout.names if name in state}

    @property
    def _folded(self) -> bool:
        """True for an export of a mean-pooled model, whose head is scaled as its backbone is."""
        config = self.folder / str(self.config.get("base_model_name_or_path")) / "config.json"
        return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get(MARK, False))

    def _check_kind(self) -> None:
        kind = self.config.get("peft_type")
        if kind != "LORA":
            raise self._fault(f"it is of type {kind}; expected LORA")
        if other := [key for key in _OTHER if self.config.get(key)]:
            raise self._fault(f"it has {other[0]}={self.config[other[0]]}; expected plain LoRA")
        start = self.config.get("init_lora_weights", True)
        if start not in _PLAIN_STARTS:
            raise self._fault(
                f"it was trained with init_lora_weights={start}, over weights that were changed for it; "
                "expected an adapter over the weights as they are (PEFT converts it when it saves)"
            )

    def _check_layers(self, layout: Layout) -> None:
        ours = {spec.name for spec in layout if spec.role in ("A", "B")}
        theirs = {name for name in self.tensors if ".lora_" in name}
        if ours != theirs:
            raise self._fault(
                f"{len(theirs - ours)} of its {len(theirs)} tensors of A and B are not in the run, and "
                f"{len(ours - theirs)} of the run's {len(ours)} not in it (such as {min(ours ^ theirs)}): it "
                f"is on {listing(_kinds(theirs))}, the run on {listing(_kinds(ours))}; set "
                f"lora.target_modules=[{','.join(_kinds(theirs))}]"
            )
        head = {spec.name for spec in layout if spec.role == "head"}
        others = self.tensors.keys() - theirs
        if beyond := sorted(others - head):
            raise self._fault(f"it holds {listing(beyond)}, which the run does not train")
        if others and (lacking := sorted(head - others)):
            raise self._fault(f"its head lacks {listing(lacking)}, which that of the run has")

    def _check_shapes(self, layout: Layout) -> None:
        for spec in layout:
            found = self.tensors.get(spec.name)
            if found is None or tuple(found.shape) == spec.shape:
                continue
            of_rank = 0 if spec.role == "A" else 1
            ours, theirs = spec.shape[of_rank], found.shape[of_rank]
            if spec.role in ("A", "B") and ours != theirs:
                raise self._fault(
                    f"it has rank {theirs} on {spec.layer}, and the run {ours}; set lora.r={theirs}, or "
                    "lora.rank_pattern where ranks differ by layer"
                )
            raise self._fault(f"its {spec.name} is {tuple(found.shape)}, that of the run {spec.shape}")

    def _check_scales(self, scales: Mapping[str, float]) -> None:
        for layer, ours in scales.items():
            theirs = self._scale(layer)
            if not math.isclose(ours, theirs, rel_tol=1e-6):
                rslora = str(bool(self.config.get("use_rslora"))).lower()
                raise self._fault(
                    f"it was trained with a scale of {theirs:g} on {layer}, and the run has {ours:g}; set "
                    f"lora.alpha={self.config['lora_alpha']} lora.rslora={rslora}"
                )

    def _scale(self, layer: str) -> float:
        ranks, alphas = self.config.get("rank_pattern") or {}, self.config.get("alpha_pattern") or {}
        rank = ranks.get(get_pattern_key(list(ranks), layer), self.config["r"])
        alpha = alphas.get(get_pattern_key(list(alphas), layer), self.config["lora_alpha"])
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def _fault(self, words: str) -> ModelError:
        return ModelError(
            f"model.adapter: {self.path} does not fit the run: {words}",
            sent="the adapter to start from does not fit the run",
            key="model.adapter",
        )


def _kinds(names: set[str]) -> list[str]:
    """The last parts of the names of the layers that tensors are of."""
    return sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in names})
