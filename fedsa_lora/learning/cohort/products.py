"""Products with frozen weights, laid out once for the passes of a block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Values of a weight from which the layout of oneDNN is the faster one: with Intel's processors, and with
# others, of whose vector registers MKL uses half
LARGE, SMALL = 1 << 16, 1 << 13


@dataclass(frozen=True, eq=False)
class Product:
    """x W^T + b and, back, g W of a frozen weight W (d_out, d_in), multiplied in a ``kind`` of numbers.

    ``there`` (d_in, d_out) and ``back`` (d_out, d_in) are contiguous on a CPU: the matrix library then copies
    neither anew at each product. Those that are ``packed`` are in the layout of oneDNN instead, which saves
    12 to 15 %, and in float32 on an AMD Zen 5 more than half: ``there`` is that of W, ``back`` that of W^T.
    """

    kind: torch.dtype
    there: torch.Tensor
    back: torch.Tensor
    bias: torch.Tensor | None
    packed: bool

    @classmethod
    def of(cls, module: Any, kind: torch.dtype) -> Product:
        """Of a linear layer; transformers' Conv1D has its weight turned already."""
        weight = module.weight.detach().to(kind)
        there, back = (weight.T, weight) if isinstance(module, nn.Linear) else (weight, weight.T)
        if weight.device.type == "cpu":
            there, back = there.contiguous(), back.contiguous()
        bias = None if module.bias is None else module.bias.detach().to(kind)
        packed = weight.numel() >= (LARGE if _is_intel() else SMALL) and _packs(weight)
        if packed:
            reorder = torch.ops.mkldnn._reorder_linear_weight
            there, back = reorder(back), reorder(there)
        return cls(kind, there, back, bias, packed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, d_in)."""
        if self.packed:
            return _linear(x, self.there, self.bias)
        return x @ self.there if self.bias is None else torch.addmm(self.bias, x, self.there)

    def backward(self, gradient: torch.Tensor) -> torch.Tensor:
        """g (n, d_out)."""
        return _linear(gradient, self.back, None) if self.packed else gradient @ self.back


class Products:
    """The products of a model's layers, each laid out once for as long as its weight stays as it is: that
    takes a fifteenth of a short training in bf16."""

    def __init__(self) -> None:
        self._held: dict[nn.Module, tuple[tuple[object, ...], Product]] = {}

    def of(self, module: Any, kind: torch.dtype) -> Product:
        """The product of a linear layer in a kind of numbers."""
        # what is merged into a weight is written into it, which moves its version
        state = (kind, module.weight.data_ptr(), module.weight._version)
        before, product = self._held.get(module, ((), None))
        if product is None or before != state:
            product = Product.of(module, kind)
            self._held[module] = (state, product)
        return product


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, product: Product) -> torch.Tensor:
        ctx.product = product
        return product.forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return ctx.product.backward(gradients[0]), None


def multiplied(x: torch.Tensor, product: Product) -> torch.Tensor:
    """The product for x (..., d_in)."""
    flat = x.reshape(-1, x.shape[-1]).to(product.kind)
    out: torch.Tensor = _Frozen.apply(flat, product)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


@lru_cache
def _is_intel() -> bool:
    """True on a processor of Intel's, or where Linux does not name it."""
    about = Path("/proc/cpuinfo")
    return not about.is_file() or "GenuineIntel" in about.read_text(encoding="utf-8", errors="replace")


def _packs(weight: torch.Tensor) -> bool:
    kinds = (torch.float32, torch.bfloat16)
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return weight.device.type == "cpu" and weight.dtype in kinds and available
