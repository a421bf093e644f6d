"""Layers of which each client has its own factors or weights, over the rows of all clients at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedsa_lora.learning.cohort.masks import Mask
from fedsa_lora.learning.cohort.products import Product, Products
from fedsa_lora.learning.cohort.rows import Rows, Views
from fedsa_lora.learning.cohort.slots import Slots, Spans


@dataclass(frozen=True, eq=False)
class LowRank:
    """h = W x + b + s B_k A_k x: the ``base`` product is common, A (r, d_in) and B (d_out, r) are those of
    each client, with their gradients where they are trained. ``dropout`` is the layer before A."""

    base: Product
    scale: float
    dropout: nn.Module
    A: Views
    B: Views
    dA: Views | None
    dB: Views | None

    @classmethod
    def of(cls, layer: Any, A: str, B: str, rows: Rows, products: Products) -> LowRank:
        """Of PEFT's layer, by the names of its factors."""
        base = products.of(layer.get_base_layer(), rows.work.dtype)
        collected = rows.collected(A), rows.collected(B)
        (dropout,), (scale,) = layer.lora_dropout.values(), layer.scaling.values()
        return cls(base, scale, dropout, rows.working(A), rows.working(B), *collected)

    def add(self, out: torch.Tensor, x: torch.Tensor, spans: Spans) -> torch.Tensor:
        """Add s B_k A_k x to ``out`` client by client. Returns A_k x."""
        inner = x.new_empty(len(x), self.A.each[0].shape[0])
        for k, begin, end in spans:
            torch.mm(x[begin:end], self.A.each[k].mT, out=inner[begin:end])
            out[begin:end].addmm_(inner[begin:end], self.B.each[k].mT, alpha=self.scale)
        return inner

    def add_in(self, slots: Slots, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The same for all clients at once; A_k x stays in their slots."""
        inner: torch.Tensor = slots.spread(x) @ slots.part(self.A).mT
        slots.own(out).add_(slots.joined(inner @ slots.part(self.B).mT), alpha=self.scale)
        return inner

    def collect(
        self,
        above: torch.Tensor,
        x: torch.Tensor,
        inner: torch.Tensor,
        below: torch.Tensor | None,
        spans: Spans,
    ) -> None:
        """Collect the gradients of A and B from that of the output, ``above``, and add them up ``below``,
        client by client."""
        for k, begin, end in spans:
            above_k = above[begin:end]
            if self.dB is not None:
                _collect(self.dB.each[k], above_k.mT, inner[begin:end], self.scale)
            if self.dA is None and below is None:
                continue
            back = above_k @ self.B.each[k]
            if self.dA is not None:
                _collect(self.dA.each[k], back.mT, x[begin:end], self.scale)
            if below is not None:
                below[begin:end].addmm_(back, self.A.each[k], alpha=self.scale)

    def collect_in(
        self,
        slots: Slots,
        above: torch.Tensor,
        x: torch.Tensor,
        inner: torch.Tensor,
        below: torch.Tensor | None,
    ) -> None:
        """The same for all clients at once."""
        spread = slots.spread(above)
        if self.dB is not None:
            _collect(slots.part(self.dB), spread.mT, inner, self.scale)
        if self.dA is None and below is None:
            return
        back = spread @ slots.part(self.B)
        if self.dA is not None:
            _collect(slots.part(self.dA), back.mT, slots.spread(x), self.scale)
        if below is not None:
            slots.own(below).add_(slots.joined(back @ slots.part(self.A)), alpha=self.scale)


class _LowRankPass(torch.autograd.Function):
    """The base product once for all rows, and the low-rank part of each client. Gradients of A and B are
    added where they are collected."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        _: torch.Tensor,
        layer: LowRank,
        spans: Spans,
        slots: Slots | None,
        mask: Mask | None,
    ) -> torch.Tensor:
        x = x.to(layer.base.kind)
        out = layer.base.forward(x)
        if mask is not None:
            x = mask(x)
        inner = layer.add(out, x, spans) if slots is None else layer.add_in(slots, out, x)
        ctx.save_for_backward(x, inner)
        ctx.layer, ctx.spans, ctx.slots, ctx.mask = layer, spans, slots, mask
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, inner = ctx.saved_tensors
        layer, (above,) = ctx.layer, gradients
        below = None
        if ctx.needs_input_grad[0]:
            below = torch.zeros_like(x) if ctx.mask is not None else layer.base.backward(above)
        if ctx.slots is None:
            layer.collect(above, x, inner, below, ctx.spans)
        else:
            layer.collect_in(ctx.slots, above, x, inner, below)
        if below is not None and ctx.mask is not None:
            below = ctx.mask(below).add_(layer.base.backward(above))
        return below, None, None, None, None, None


@dataclass(frozen=True, eq=False)
class Own:
    """h = W_k x + b_k: a linear layer of the head, of which each client has its own weights (d_out, d_in)
    and biases (d_out,)."""

    weight: Views
    bias: Views | None
    dweight: Views | None
    dbias: Views | None

    @classmethod
    def of(cls, weight: str, bias: str | None, rows: Rows) -> Own:
        """By the names of its parameters."""
        biases = (None, None) if bias is None else (rows.working(bias), rows.collected(bias))
        return cls(rows.working(weight), biases[0], rows.collected(weight), biases[1])

    def product(self, x: torch.Tensor, spans: Spans) -> torch.Tensor:
        """The output, client by client."""
        out = x.new_zeros(len(x), len(self.weight.each[0]))
        for k, begin, end in spans:
            torch.mm(x[begin:end], self.weight.each[k].mT, out=out[begin:end])
            if self.bias is not None:
                out[begin:end].add_(self.bias.each[k])
        return out

    def product_in(self, slots: Slots, x: torch.Tensor) -> torch.Tensor:
        """The same for all clients at once."""
        spread = slots.spread(x) @ slots.part(self.weight).mT
        if self.bias is not None:
            spread += slots.part(self.bias).unsqueeze(1)
        out = x.new_zeros(len(x), spread.shape[-1])
        slots.own(out).copy_(slots.joined(spread))
        return out

    def collect(self, above: torch.Tensor, x: torch.Tensor, below: torch.Tensor | None, spans: Spans) -> None:
        """Collect the gradients of weights and biases from that of the output, and write what is ``below``
        them, client by client."""
        for k, begin, end in spans:
            if self.dweight is not None:
                _collect(self.dweight.each[k], above[begin:end].mT, x[begin:end], 1.0)
            if self.dbias is not None:
                self.dbias.each[k].add_(above[begin:end].sum(0))
            if below is not None:
                torch.mm(above[begin:end], self.weight.each[k], out=below[begin:end])

    def collect_in(
        self, slots: Slots, above: torch.Tensor, x: torch.Tensor, below: torch.Tensor | None
    ) -> None:
        """The same for all clients at once."""
        spread = slots.spread(above)
        if self.dweight is not None:
            _collect(slots.part(self.dweight), spread.mT, slots.spread(x), 1.0)
        if self.dbias is not None:
            slots.part(self.dbias).add_(spread.sum(1))
        if below is not None:
            slots.own(below).copy_(slots.joined(spread @ slots.part(self.weight)))


class _OwnPass(torch.autograd.Function):
    """The product of each client; gradients are added where they are collected."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, _: torch.Tensor, layer: Own, spans: Spans, slots: Slots | None
    ) -> torch.Tensor:
        x = x.to(layer.weight.every.dtype)
        ctx.save_for_backward(x)
        ctx.layer, ctx.spans, ctx.slots = layer, spans, slots
        return layer.product(x, spans) if slots is None else layer.product_in(slots, x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        layer, (above,) = ctx.layer, gradients
        below = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        if ctx.slots is None:
            layer.collect(above, x, below, ctx.spans)
        else:
            layer.collect_in(ctx.slots, above, x, below)
        return below, None, None, None, None


def passed(
    x: torch.Tensor,
    layer: LowRank | Own,
    spans: Spans,
    slots: Slots | None,
    rows: Rows,
    mask: Mask | None = None,
) -> torch.Tensor:
    """The layer's output (..., d_out) for x (..., d_in), whose rows are in the order of the clients. It is
    computed client by client, or with ``slots`` at once. The ``mask`` is that of its dropout, for LoRA."""
    flat = x.reshape(-1, x.shape[-1])
    out: torch.Tensor
    if isinstance(layer, LowRank):
        out = _LowRankPass.apply(flat, rows.leaf, layer, spans, slots, mask)  # type: ignore[no-untyped-call]
    else:
        out = _OwnPass.apply(flat, rows.leaf, layer, spans, slots)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


def _collect(into: torch.Tensor, one: torch.Tensor, two: torch.Tensor, scale: float) -> None:
    """Add s * one @ two to a gradient, of one client or of several."""
    if into.dtype != one.dtype:
        into.add_(one @ two, alpha=scale)
    elif into.dim() == 2:
        into.addmm_(one, two, alpha=scale)
    else:
        into.baddbmm_(one, two, alpha=scale)
