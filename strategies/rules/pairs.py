"""Pairs of A and B: what a rule that looks at both takes of a layout, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, NamedArrays, TensorSpec
from strategies.rules.factors import Factors


@dataclass(frozen=True)
class Pair:
    """The A and the B of one layer.

    A is (r, d_in) and B (d_out, r), or (r, c_in, kh, kw) and (d_out, r, 1, 1) in a convolution; in
    both, the product is that of the arrays with all axes but the first flattened.
    """

    A: TensorSpec
    B: TensorSpec

    def read(self, arrays: NamedArrays) -> Factors:
        a, b = (arrays[spec.name].reshape(spec.shape[0], -1) for spec in (self.A, self.B))
        return Factors(a, b)

    def write(self, factors: Factors) -> dict[str, NDArray[np.float32]]:
        """The factors by name, in the shapes of the layout."""
        a, b = (value.astype(np.float32) for value in (factors.A, factors.B))
        return {self.A.name: a.reshape(self.A.shape), self.B.name: b.reshape(self.B.shape)}


def pairs(layout: Layout) -> dict[str, Pair]:
    """The A and the B of each layer, found by ``TensorSpec.layer`` and ``role``; here and nowhere else.

    Raises ConfigError, naming the layers, where there is not one of each with a product, or no layer at
    all. DoRA has a magnitude beside A and B, VeRA has vectors that are no factors: neither is a pair.
    """
    found: dict[str, list[TensorSpec]] = defaultdict(list)
    for spec in layout:
        if spec.role in ("A", "B"):
            found[spec.layer].append(spec)
    ordered = {layer: sorted(found[layer], key=lambda spec: spec.role) for layer in sorted(found)}
    wrong = {layer: [s.name for s in specs] for layer, specs in ordered.items() if not _multiply(specs)}
    if wrong or not found:
        shown = dict(list(wrong.items())[:3])
        raise ConfigError(
            "this strategy combines A with B, so it needs one of each from every layer, A (r, ...) and "
            f"B (d_out, r), but the shared tensors are {shown or 'neither'}"
            f"{' and others' if len(wrong) > 3 else ''}: choose a split that has both, and plain LoRA"
        )
    return {layer: Pair(*specs) for layer, specs in ordered.items()}


def _multiply(specs: Sequence[TensorSpec]) -> bool:
    """True where these are an A (r, ...) and a B (d_out, r), the latter perhaps with trailing axes of 1."""
    if [spec.role for spec in specs] != ["A", "B"]:
        return False
    a, b = (spec.shape for spec in specs)
    return len(a) > 1 and b[1:] == (a[0], *(1 for _ in b[2:]))
