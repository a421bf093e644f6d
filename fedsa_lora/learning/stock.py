"""Exports for stock PEFT and transformers, so that ``from_pretrained`` makes the same model of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.vera.model import _kaiming_init
from safetensors.torch import save_model
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME

from fedsa_lora.errors import ModelError
from fedsa_lora.learning.lora import ADAPTER
from fedsa_lora.tasks.checkpoint import quiet
from fedsa_lora.tasks.heads import unwrapped
from fedsa_lora.tasks.pooling import SCALE, folded, is_mean_pooled, refuse_unfoldable
from fedsa_lora.tasks.prompts import LinearClassifier, classifier_of

Tensors = Mapping[str, torch.Tensor]
_CLASSIFIER = f"base_model.model.classifier.modules_to_save.{ADAPTER}.weight"


def stock_adapter(
    model: Any, state: Tensors, starts: Tensors, base: str
) -> tuple[dict[str, torch.Tensor], Any]:
    """The tensors and the config of an adapter over the backbone that ``save_backbone`` writes at ``base``.

    ``state`` and ``starts``, values now and at the start, are by PEFT's names of the parameters. PiSSA
    becomes plain LoRA of twice the rank; VeRA's projections are added; over a layer that computes mean
    pooling the classifier is scaled as that layer's output is, and the layer itself has no adapter. Raises
    ModelError for a model that no stock code computes.
    """
    refuse_unstocked(model)
    kept, tensors = model.peft_config[ADAPTER], dict(state)
    stock = stock_config(kept, base)
    if getattr(kept, "init_lora_weights", None) == "pissa":
        tensors |= beside_start(state, starts)
    if model.peft_type == "VERA":
        tensors |= projections(model.base_model, kept)
    if is_mean_pooled(model):
        tensors[_CLASSIFIER] = tensors[_CLASSIFIER] * SCALE
    return tensors, stock


def save_backbone(model: Any, folder: Path) -> None:
    """Write a model without adapters as stock transformers computes it; of one that is not transformers' the
    weights alone. Raises ModelError for one that no stock code computes."""
    if not hasattr(model, "save_pretrained"):
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(folder / SAFE_WEIGHTS_NAME))
        return
    stock = folded(model) if is_mean_pooled(model) else model
    with quiet():
        stock.save_pretrained(str(folder))


def refuse_unstocked(model: Any) -> None:
    """Raise ModelError for a model, with or without adapters, that no stock code computes."""
    if is_mean_pooled(model):
        refuse_unfoldable(unwrapped(model))
    if isinstance(classifier_of(unwrapped(model)), LinearClassifier):
        raise ModelError(
            "no stock model has a linear layer on the embedding of an image (task.classifier=linear), so "
            "there is nothing to export; fedsa-lora evaluate measures it from the run directory"
        )


def refuse_tied(model: nn.Module, layers: Mapping[str, Any]) -> None:
    """Raise ModelError where one of PEFT's ``layers``, by name, is on a weight that another layer uses as
    well, such as tied word embeddings: merged into it, the adapter would change both."""
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for name, layer in layers.items():
        if uses[id(layer.get_base_layer().weight)] > 1:
            raise ModelError(
                f"{name} shares its weight with another layer, which merging its adapter would change "
                "too: export the adapter, without --merge, or choose other lora.target_modules"
            )


def beside_start(state: Tensors, starts: Tensors) -> dict[str, torch.Tensor]:
    """[A; A0] (2r, d_in) and [B, -B0] (d_out, 2r): B A - B0 A0 as plain LoRA over the whole backbone.

    By PEFT's names of the parameters. The conversion is that of PiSSA (arXiv:2404.02948).
    """
    beside = {raw: torch.cat([state[raw], start]) for raw, start in starts.items() if ".lora_A." in raw}
    for raw, start in starts.items():
        if ".lora_B." in raw:
            beside[raw] = torch.cat([state[raw], -start], dim=1)
    return beside


def projections(model: Any, config: Any) -> dict[str, torch.Tensor]:
    """VeRA's frozen A and B, drawn as PEFT draws them, for on the meta device there are only shapes."""
    rng = torch.Generator(device="cpu").manual_seed(config.projection_prng_key)
    return {
        f"base_model.{side}.{ADAPTER}": _kaiming_init(tuple(getattr(model, side)[ADAPTER].shape), rng)
        for side in ("vera_A", "vera_B")
    }


def stock_config(config: Any, base: str) -> Any:
    """The adapter's config as it goes with saved tensors: nothing is drawn or decomposed on loading."""
    stock = copy.deepcopy(config)
    stock.base_model_name_or_path = base
    if getattr(stock, "init_lora_weights", None) == "pissa":
        stock.r *= 2
        stock.rank_pattern = {key: 2 * rank for key, rank in stock.rank_pattern.items()}
        more = math.sqrt(2) if stock.use_rslora else 2  # the scale stays as it is
        stock.lora_alpha *= more
        stock.alpha_pattern = {key: more * alpha for key, alpha in stock.alpha_pattern.items()}
    if hasattr(stock, "init_lora_weights"):
        stock.init_lora_weights = True
    return stock
