"""Dropout sites of a model, and forward passes with drawn masks there.

The layers that are reached: ``nn.Dropout`` on tokens (examples, tokens, width) and on whole examples
(examples, width), PEFT's on linear layers among them, and attention probabilities of the families below.
Any other dropout, and all of it on a GPU, whose kernels draw their own at no cost, is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from fedsa_lora.learning.dropout import Masks, Site, Sites, Strip

ATTENTION = "drawn_masks"  # the name of ``_attend`` in the configs of transformers
# whose eager attention is softmax(q k / sqrt(d) + mask) v and no more, so that it can be computed here
FAMILIES = frozenset({"bert", "camembert", "distilbert", "gpt2", "llama", "roberta", "vit", "xlm-roberta"})

Calls: TypeAlias = dict[tuple[Strip, nn.Module], int]  # of a layer in a forward pass


def find_sites(module: nn.Module, forward: Callable[[], object]) -> Sites:
    """The sites that ``forward`` meets, a pass of ``module`` in training over a single example; it computes
    without dropout there. The module is left in training mode."""
    recorder, configs = _Recorder(), _configs(module)
    layers = [layer for layer in module.modules() if type(layer) is nn.Dropout and 0 < layer.p < 1]
    module.train()
    with torch.no_grad(), recorder.installed(module, layers, configs):
        forward()
    tokens, examples, attention = (
        Strip(tuple(found)) for found in (recorder.tokens, recorder.examples, recorder.attention)
    )
    span = max(recorder.span, 1)  # without tokens, as in a model of convolutions, each example is one
    return Sites(tokens, examples, attention, span, tuple(configs) if attention.sites else ())


@contextmanager
def masked(module: nn.Module, sites: Sites, seed: int) -> Iterator[None]:
    """Within it, each forward pass of ``module`` in training takes its masks at ``sites`` from the seed and
    its own number, counted from 0."""
    reached = dict.fromkeys(site.module for site in (*sites.tokens.sites, *sites.examples.sites))
    layers = [layer for layer in reached if isinstance(layer, nn.Dropout)]
    with _Drawing(sites, seed).installed(module, layers, sites.configs):
        yield


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Have a module compute by another forward function for as long as it lasts."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _configs(module: nn.Module) -> list[Any]:
    """The configs of those models within a module whose attention can be computed here."""
    models = (part for part in module.modules() if isinstance(part, PreTrainedModel))
    found = {id(model.config): model.config for model in models}
    return [config for config in found.values() if config.model_type in FAMILIES]


def first_and_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a layer that is computed for its output and once more for its gradient, as the
    ``context_fn`` of torch's checkpoint: the second time it takes the masks of the first."""
    dropout = _CURRENT.get(None)
    return nullcontext(), nullcontext() if dropout is None else dropout.again()


class _Dropout:
    """Stands in for the dropout of a module within a context."""

    def begin(self, module: nn.Module, args: object, inputs: dict[str, Any]) -> None:
        """Sees a forward pass begin, with the inputs of the model by name."""
        raise NotImplementedError

    def drop(self, layer: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
        """The input of a dropout layer with dropout."""
        raise NotImplementedError

    def drop_attention(self, layer: nn.Module, weights: torch.Tensor, p: float) -> torch.Tensor:
        """Attention probabilities (examples, heads, tokens, tokens) with dropout."""
        raise NotImplementedError

    def again(self) -> AbstractContextManager[None]:
        """Within it, what a forward pass computes from now on is computed once more, to the same values."""
        return nullcontext()

    @contextmanager
    def installed(
        self, module: nn.Module, layers: Iterable[nn.Dropout], configs: Iterable[Any]
    ) -> Iterator[None]:
        with ExitStack() as undo:
            hook = module.register_forward_pre_hook(self.begin, with_kwargs=True)
            undo.callback(hook.remove)
            for layer in layers:
                undo.enter_context(replaced(layer, partial(self.drop, layer)))
            for config in configs:
                undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = ATTENTION
            undo.callback(_CURRENT.reset, _CURRENT.set(self))
            yield


_CURRENT: ContextVar[_Dropout] = ContextVar("dropout of the model that is computed")


class _Recorder(_Dropout):
    """Notes sites in the order in which they are met, and drops nothing. What is met before the module
    itself is called, as by a task that calls a part of it, is not noted."""

    def __init__(self) -> None:
        self.tokens: list[Site] = []
        self.examples: list[Site] = []
        self.attention: list[Site] = []
        self.span, self.begun = 0, False

    def begin(self, module: nn.Module, args: object, inputs: dict[str, Any]) -> None:
        self.begun = True
        real = _real(inputs)
        if real is not None:
            self.span = real.shape[1]

    def drop(self, layer: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return x
        if self.begun and x.dim() == 3:
            self.span = self.span or x.shape[1]
            if x.shape[1] == self.span:
                self.tokens.append(Site(layer, x.shape[2], layer.p))
        if self.begun and x.dim() == 2:
            self.examples.append(Site(layer, x.shape[1], layer.p))
        return x

    def drop_attention(self, layer: nn.Module, weights: torch.Tensor, p: float) -> torch.Tensor:
        self.span = self.span or weights.shape[-1]
        if self.begun and 0 < p < 1 and weights.shape[2:] == (self.span, self.span):
            self.attention.append(Site(layer, weights.shape[1], p))
        return weights


class _Drawing(_Dropout):
    """Applies drawn masks, laid out as the batch is padded."""

    def __init__(self, sites: Sites, seed: int) -> None:
        self.sites, self.seed = sites, seed
        self.current = _Pass(-1, None)
        self.calls: Calls = {}

    def begin(self, module: nn.Module, args: object, inputs: dict[str, Any]) -> None:
        if module.training:
            self.current = _Pass(self.current.number + 1, _real(inputs))
            self.calls = {}

    def again(self) -> AbstractContextManager[None]:
        return self._as_of(self.current, dict(self.calls))

    @contextmanager
    def _as_of(self, current: _Pass, calls: Calls) -> Iterator[None]:
        kept = self.current, self.calls
        self.current, self.calls = current, calls
        try:
            yield
        finally:
            self.current, self.calls = kept

    def drop(self, layer: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
        if not layer.training:
            return x
        strip = self.sites.tokens if x.dim() == 3 else self.sites.examples
        columns = self._columns(strip, layer)
        if columns is not None:
            padded = self._masks(x.shape[0])
            mask = padded.of_tokens(columns) if x.dim() == 3 else padded.of_examples(columns)
            if mask.shape == x.shape:
                return x * mask
        return functional.dropout(x, layer.p)

    def drop_attention(self, layer: nn.Module, weights: torch.Tensor, p: float) -> torch.Tensor:
        if not p:
            return weights
        columns = self._columns(self.sites.attention, layer)
        if columns is not None:
            mask = self._masks(weights.shape[0]).of_attention(columns)
            if mask.shape == weights.shape:
                return weights * mask.to(weights.dtype)
        return functional.dropout(weights, p)

    def _columns(self, strip: Strip, layer: nn.Module) -> slice | None:
        """Those of this call of a layer; None for a layer or a call that was not foreseen."""
        columns = strip.columns.get(layer, [])
        call = self.calls.get((strip, layer), 0)
        self.calls[strip, layer] = call + 1
        return columns[call] if call < len(columns) else None

    def _masks(self, examples: int) -> _Padded:
        current = self.current
        if current.padded is None:
            real = np.ones((examples, self.sites.span), bool)
            if current.real is not None:
                real = current.real.numpy() != 0
            drawn = self.sites.draw(self.seed, current.number, real.sum(axis=1))
            current.padded = _Padded(self.sites, drawn, real)
        return current.padded


@dataclass(eq=False)
class _Pass:
    """A forward pass, by its number: the attention mask of its batch, and the masks, once one is needed."""

    number: int
    real: torch.Tensor | None
    padded: _Padded | None = None


class _Padded:
    """Masks laid out as a batch is padded. Those of a site have 1 / (1 - p) where they keep, and are made
    when it is met: they are then still near the processor."""

    def __init__(self, sites: Sites, masks: Masks, real: NDArray[np.bool_]) -> None:
        """``real`` (examples, length): the real tokens of an example stand side by side."""
        self.sites, self.masks, self.shape = sites, masks, real.shape
        rows = np.maximum(real.cumsum() - 1, 0)  # of padding any
        self.tokens = masks.tokens[rows]
        examples, length = real.shape
        self.attention = np.ones((examples, sites.attention.width, length, length), bool)
        for at, mask in enumerate(masks.attention):
            first, count = int(real[at].argmax()), mask.shape[1]
            self.attention[at, :, first : first + count, first : first + count] = mask

    def of_tokens(self, columns: slice) -> torch.Tensor:
        """(examples, length, width)."""
        mask = _scaled(self.tokens[:, columns], self.sites.tokens, columns)
        return mask.reshape(*self.shape, mask.shape[1])

    def of_examples(self, columns: slice) -> torch.Tensor:
        """(examples, width)."""
        return _scaled(self.masks.examples[:, columns], self.sites.examples, columns)

    def of_attention(self, columns: slice) -> torch.Tensor:
        """(examples, heads, length, length)."""
        return _scaled(self.attention[:, columns], self.sites.attention, columns)


def _scaled(mask: NDArray[np.bool_], strip: Strip, columns: slice) -> torch.Tensor:
    return torch.from_numpy(np.multiply(mask, strip.scales[columns.start]))


def _real(inputs: dict[str, Any]) -> torch.Tensor | None:
    """The attention mask (examples, length) of a batch, if it has one."""
    mask = inputs.get("attention_mask")
    return mask if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager attention of transformers with the dropout of the context: queries (examples, heads, tokens, d),
    keys and values of as many heads or a divisor of that."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * (scaling or query.shape[-1] ** -0.5)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = _CURRENT.get().drop_attention(module, weights, dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)
