"""What stock PEFT is given, so that ``PeftModel.from_pretrained`` makes the same model of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.vera.model import _kaiming_init

from fedsa_lora.learning.lora import ADAPTER

Tensors = Mapping[str, torch.Tensor]


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
