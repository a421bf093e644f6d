"""Layers of which each client has its own factors or weights, over the rows of all clients at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedsa_lora.learning.cohort.masks import Mask
from fedsa_lora.learning.cohort.products import Product
from fedsa_lora.learning.cohort.rows import Rows

Spans = Sequence[tuple[int, int, int]]  # (client, begin, end) of rows
Views = list[torch.Tensor] | None


@dataclass(frozen=True, eq=False)
class LowRank:
    """h = W x + b + s B_k A_k x: the ``base`` product is common, A (r, d_in) and B (d_out, r) are those of
    each client, with their gradients where they are trained. ``dropout`` is the layer before A."""

    base: Product
    scale: float
    dropout: nn.Module
    A: list[torch.Tensor]
    B: list[torch.Tensor]
    dA: Views
    dB: Views

    @classmethod
    def of(cls, layer: Any, A: str, B: str, rows: Rows) -> LowRank:
        """Of PEFT's layer, by the names of its factors."""
        base = Product.of(layer.get_base_layer(), rows.work.dtype)
        collected = rows.collected(A), rows.collected(B)
        (dropout,), (scale,) = layer.lora_dropout.values(), layer.scaling.values()
        return cls(base, scale, dropout, rows.working(A), rows.working(B), *collected)


class _LowRankPass(torch.autograd.Function):
    """The base product once for all rows, the low-rank part client by client. Gradients of A and B are added
    where they are collected."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, _: torch.Tensor, layer: LowRank, spans: Spans, mask: Mask | None
    ) -> torch.Tensor:
        x = x.to(layer.base.kind)
        out = layer.base.forward(x)
        if mask is not None:
            x = mask(x)
        inner = x.new_empty(len(x), layer.A[0].shape[0])
        for k, begin, end in spans:
            torch.mm(x[begin:end], layer.A[k].mT, out=inner[begin:end])
            out[begin:end].addmm_(inner[begin:end], layer.B[k].mT, alpha=layer.scale)
        ctx.save_for_backward(x, inner)
        ctx.layer, ctx.spans, ctx.mask = layer, spans, mask
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, inner = ctx.saved_tensors
        layer, (above,) = ctx.layer, gradients
        below = None
        if ctx.needs_input_grad[0]:
            below = torch.zeros_like(x) if ctx.mask is not None else layer.base.backward(above)
        for k, begin, end in ctx.spans:
            above_k = above[begin:end]
            if layer.dB is not None:
                _collect(layer.dB[k], above_k.mT, inner[begin:end], layer.scale)
            if layer.dA is None and below is None:
                continue
            back = above_k @ layer.B[k]
            if layer.dA is not None:
                _collect(layer.dA[k], back.mT, x[begin:end], layer.scale)
            if below is not None:
                below[begin:end].addmm_(back, layer.A[k], alpha=layer.scale)
        if below is not None and ctx.mask is not None:
            below = ctx.mask(below).add_(layer.base.backward(above))
        return below, None, None, None, None


@dataclass(frozen=True, eq=False)
class Own:
    """h = W_k x + b_k: a linear layer of the head, of which each client has its own weights (d_out, d_in)
    and biases (d_out,)."""

    weight: list[torch.Tensor]
    bias: list[torch.Tensor] | None
    dweight: Views
    dbias: Views

    @classmethod
    def of(cls, weight: str, bias: str | None, rows: Rows) -> Own:
        """By the names of its parameters."""
        biases = (None, None) if bias is None else (rows.working(bias), rows.collected(bias))
        return cls(rows.working(weight), biases[0], rows.collected(weight), biases[1])


class _OwnPass(torch.autograd.Function):
    """The product client by client; gradients are added where they are collected."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, _: torch.Tensor, layer: Own, spans: Spans) -> torch.Tensor:
        x = x.to(layer.weight[0].dtype)
        out = x.new_empty(len(x), len(layer.weight[0]))
        for k, begin, end in spans:
            torch.mm(x[begin:end], layer.weight[k].mT, out=out[begin:end])
            if layer.bias is not None:
                out[begin:end].add_(layer.bias[k])
        ctx.save_for_backward(x)
        ctx.layer, ctx.spans = layer, spans
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        layer, (above,) = ctx.layer, gradients
        below = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for k, begin, end in ctx.spans:
            if layer.dweight is not None:
                _collect(layer.dweight[k], above[begin:end].mT, x[begin:end], 1.0)
            if layer.dbias is not None:
                layer.dbias[k].add_(above[begin:end].sum(0))
            if below is not None:
                torch.mm(above[begin:end], layer.weight[k], out=below[begin:end])
        return below, None, None, None


def passed(
    x: torch.Tensor, layer: LowRank | Own, spans: Spans, rows: Rows, mask: Mask | None = None
) -> torch.Tensor:
    """The layer's output (..., d_out) for x (..., d_in), whose rows are in the order of the clients. The
    ``mask`` is that of its dropout, for LoRA."""
    flat = x.reshape(-1, x.shape[-1])
    out: torch.Tensor
    if isinstance(layer, LowRank):
        out = _LowRankPass.apply(flat, rows.leaf, layer, spans, mask)  # type: ignore[no-untyped-call]
    else:
        out = _OwnPass.apply(flat, rows.leaf, layer, spans)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


def _collect(into: torch.Tensor, one: torch.Tensor, two: torch.Tensor, scale: float) -> None:
    """Add s * one @ two to a gradient."""
    if into.dtype == one.dtype:
        into.addmm_(one, two, alpha=scale)
    else:
        into.add_(one @ two, alpha=scale)
