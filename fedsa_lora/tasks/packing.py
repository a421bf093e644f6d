"""Texts in one row without padding: a token sees its own text alone."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from fedsa_lora.errors import ModelError
from fedsa_lora.tasks.task import Batch


def one_row(batch: Batch) -> Batch:
    """A padded batch of texts as one row: ``input_ids``, ``labels`` and ``position_ids`` (1, tokens).

    Positions begin anew with each text, by which transformers sees where one ends: it keeps attention within
    each, as long as it is given neither a mask nor a cache.
    """
    real = batch["attention_mask"].bool()
    positions = batch["attention_mask"].cumsum(dim=1) - 1
    rows = {"input_ids": batch["input_ids"], "labels": batch["labels"], "position_ids": positions}
    return {name: values[real].unsqueeze(0) for name, values in rows.items()}


def check_packing(model: Any, empty: bool) -> None:
    """Raise ModelError for a language model whose tokens see other texts of a row than their own. An
    ``empty`` one computes nothing, so it is only looked at."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise _unfit(model, "takes no positions of tokens")
    if empty:
        return
    ids = torch.arange(6).unsqueeze(0) % model.config.vocab_size
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    with torch.no_grad():
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        alone = torch.cat([model(input_ids=part).logits for part in ids.split(3, dim=1)], dim=1)
    rounding = torch.finfo(alone.dtype).eps ** 0.5  # of the largest logit; a look aside changes more
    if (together - alone).abs().max() > rounding * alone.abs().max():
        raise _unfit(model, "looks from one text of a row into the next")


def _unfit(model: Any, fault: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} {fault}, so texts cannot be packed: set task.packed=false",
        sent="the model cannot compute several texts in one row",
        key="task.packed",
    )
