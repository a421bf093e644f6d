"""Mean pooling: as a hook while a run trains, and folded into one more layer of a stock BERT for its
export."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import torch
from torch import nn

from fedsa_lora.errors import ModelError
from fedsa_lora.tasks.checkpoint import stored_file
from fedsa_lora.tasks.heads import unwrapped

MEAN = "mean"
MARK = "mean_pooling_layer"  # in the config of a model whose last layer computes the mean
UNREAD_TYPES = ("big_bird",)  # have a pooler that the head of a classifier does not read
FOLDED_TYPES = ("bert",)  # model types whose stock code computes the mean with one more layer
SCALE = 2.0**13  # by which a folded model's pooler output is smaller, and its classifier's weight larger
_TINY = 2.0**-12  # of sqrt(eps): so small beside it that a LayerNorm divides by a constant
_ATTENDED = 2.0**20  # by which the mean outweighs the residual connection; infinite in fp16
_OUTPUT = 2.0**5  # the mean's size where the pooler reads it


def mean_pooled(model: Any) -> Any:
    """The same model, whose head reads the mean of the last hidden states over the tokens that the attention
    mask keeps, as sentence encoders were trained (arXiv:1908.10084), in place of the pooler's output.

    Raises ModelError for a model whose head reads no pooler.
    """
    if not can_pool(model):
        raise ModelError(
            f"model.pooling=mean: the head of {type(model).__name__} reads no pooler whose output could be "
            "replaced: expected an encoder such as BERT or ALBERT; set model.pooling=model"
        )
    model.base_model.register_forward_hook(_pool_mean, with_kwargs=True)
    model.pooling = MEAN
    return model


def can_pool(model: Any) -> bool:
    """The head of a model reads a pooler's output, in the place of which the mean can be put."""
    if model.config.model_type in UNREAD_TYPES or model.base_model is model:
        return False
    return getattr(model.base_model, "pooler", None) is not None


def is_mean_pooled(model: Any) -> bool:
    """``mean_pooled`` made this model, or the one inside its adapters."""
    return getattr(unwrapped(model), "pooling", None) == MEAN


def trained_with_mean(path: str, revision: str | None) -> bool:
    """A checkpoint in the format of sentence-transformers that was trained with mean pooling."""
    found = stored_file(path, "1_Pooling/config.json", revision, fetch=True)
    if found is None:
        return False
    try:
        settings = dict(json.loads(found.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{found} holds no settings ({error}): copy it again, or set model.pooling"
        ) from None
    return settings.get("pooling_mode_mean_tokens") is True


def _pool_mean(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    states = output.last_hidden_state  # (batch, tokens, width)
    mask = kwargs.get("attention_mask")
    kept = torch.ones_like(states[..., 0]) if mask is None else mask.to(states.dtype)
    output.pooler_output = (states * kept.unsqueeze(-1)).sum(1) / kept.sum(1, keepdim=True).clamp(min=1)
    return output


def refuse_unfoldable(model: Any) -> None:
    """Raise ModelError for a mean-pooled model that stock code cannot compute."""
    if model.config.model_type not in FOLDED_TYPES:
        raise ModelError(
            f"no stock {type(model).__name__} computes the mean of the tokens (model.pooling=mean), so an "
            f"export would give other outputs than the run; expected model type {' or '.join(FOLDED_TYPES)}"
        )


@torch.no_grad()
def folded(model: Any) -> Any:
    """A mean-pooled model as one of stock code: a further layer whose output at the first token is the mean.

    With q = k = 0 its attention is uniform over the tokens that the mask keeps, so it is their exact mean.
    Its values are so small that eps outweighs their variance, where a LayerNorm is linear: it divides by
    sqrt(eps). The layer before hands on its states before their LayerNorm's weight and bias, whose mean over
    the width is zero, so nothing is subtracted either; the pooler applies that weight and bias. tanh is
    linear at a small scale, by which the classifier's weight is larger. Powers of two are exact, so
    ``unfolded`` is bit-identical. In fp16 the values are out of range and every logit is NaN; bf16
    and fp32 are right.

    Raises ModelError for an architecture without such a layer.
    """
    refuse_unfoldable(model)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers += 1
    setattr(config, MARK, True)
    stock = type(model)(config).eval()
    stock.load_state_dict(model.state_dict(), strict=False)
    *_, before, layer = stock.base_model.encoder.layer
    root, attention = math.sqrt(config.layer_norm_eps), layer.attention
    power = 2.0 ** math.floor(math.log2(root))
    for parameter in layer.parameters():
        parameter.zero_()
    attention.self.value.weight.fill_diagonal_(1.0)
    attention.output.dense.weight.fill_diagonal_(_ATTENDED)
    attention.output.LayerNorm.weight.fill_(power)  # as small as before, for the second LayerNorm
    layer.output.LayerNorm.weight.fill_(_OUTPUT * config.layer_norm_eps / (_TINY * power * power))
    norm, pooler = before.output.LayerNorm, stock.base_model.pooler.dense
    pooler.weight.copy_(torch.diag(norm.weight / (_OUTPUT * SCALE)))
    pooler.bias.copy_(norm.bias / SCALE)
    norm.weight.fill_(_TINY * power / _ATTENDED)
    norm.bias.zero_()
    stock.classifier.weight.mul_(SCALE)
    return stock


@torch.no_grad()
def unfolded(stock: Any) -> Any:
    """The mean-pooled model, not yet with its hook, that ``folded`` made a model of stock code of."""
    config = copy.deepcopy(stock.config)
    without_layer(config)
    model = type(stock)(config).eval()
    model.load_state_dict(stock.state_dict(), strict=False)
    norm, pooler = model.base_model.encoder.layer[-1].output.LayerNorm, model.base_model.pooler.dense
    norm.weight.copy_(pooler.weight.diagonal() * (_OUTPUT * SCALE))
    norm.bias.copy_(pooler.bias * SCALE)
    model.classifier.weight.div_(SCALE)
    return model


def without_layer(config: Any) -> None:
    """Make the config of a folded model that of the model that was folded."""
    config.num_hidden_layers -= 1
    delattr(config, MARK)


def is_unread(model: Any, name: str) -> bool:
    """A module of a mean-pooled model whose output nobody reads: its pooler and what is in it."""
    return is_mean_pooled(model) and f"{name}.".startswith(f"{model.base_model_prefix}.pooler.")
