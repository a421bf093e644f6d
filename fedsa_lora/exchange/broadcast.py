"""Content of a broadcast beside whole values: coded changes, and factors for the frozen weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import WireError
from fedsa_lora.exchange.arrays import Layout, Vector, check_vector
from fedsa_lora.exchange.codec import Codec

Matrix = NDArray[np.float32]


def changed(held: Vector, pool: Layout, carried: Layout, payload: NDArray[Any], codec: Codec) -> Vector:
    """The common vector (pool.size,) after a coded change of the tensors of ``carried``.

    The server and its clients compute it alike, so that both know it to the bit. Raises WireError for
    a payload that is none of these tensors.
    """
    change = codec.decode(payload, carried.size).dense()
    after = held.copy()
    index = pool.index(carried)
    after[slice(None) if index is None else index] += change
    return after


def adapted(pool: Layout) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of each layer of which the pool has A and B, by layer."""
    found: dict[str, dict[str, int]] = {}
    for spec in pool:
        if spec.role in ("A", "B") and len(spec.shape) > 1:
            rank = spec.shape[0 if spec.role == "A" else 1]
            found.setdefault(spec.layer, {})[spec.role] = spec.size // rank
    return {layer: (d["B"], d["A"]) for layer, d in sorted(found.items()) if len(d) == 2}


def pack_factors(factors: Mapping[str, tuple[Matrix, Matrix]], pool: Layout) -> tuple[list[int], Vector]:
    """(B, A) by layer as one vector, layer after layer, and the rank of each layer of ``adapted``."""
    ranks, parts = [], [np.zeros(0, np.float32)]
    for layer in adapted(pool):
        pair = factors.get(layer)
        ranks.append(0 if pair is None else len(pair[1]))
        parts += [] if pair is None else [matrix.astype(np.float32).ravel() for matrix in pair]
    return ranks, np.concatenate(parts)


def unpack_factors(
    ranks: Sequence[int], vector: NDArray[Any], pool: Layout
) -> dict[str, tuple[Matrix, Matrix]]:
    """(B, A) by layer, views into the vector. Raises WireError where ranks and length do not fit."""
    layers = adapted(pool)
    if len(ranks) != len(layers):
        raise WireError(f"factors for {len(ranks)} layers, expected {len(layers)}")
    sizes = [rank * (d_out + d_in) for rank, (d_out, d_in) in zip(ranks, layers.values(), strict=True)]
    check_vector(vector, sum(sizes))
    found, at = {}, 0
    for (layer, (d_out, d_in)), rank in zip(layers.items(), ranks, strict=True):
        b, a = vector[at : at + rank * d_out], vector[at + rank * d_out : at + rank * (d_out + d_in)]
        at += rank * (d_out + d_in)
        found[layer] = b.reshape(d_out, rank), a.reshape(rank, d_in)
    return found
