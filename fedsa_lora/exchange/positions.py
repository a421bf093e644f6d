"""Sorted positions as bytes, near the entropy bound: their gaps, Rice coded.

A gap g is split by a parameter b: its b low bits are written as they are, g >> b in unary (that many zeros,
then a one). The parameter is chosen for each 128 gaps as the one with the fewest bits, so that a support
that is dense in one layer and thin in another costs what each part needs (Golomb 1966; Rice 1979). Of more
than half of all positions, those that are absent are coded instead.

Bytes: one parameter for each 128 gaps; then one stream of bits, zero-padded to a byte: bit 0 of every
gap whose parameter exceeds 0, bit 1 of every gap whose parameter exceeds 1, and so on, then the unary parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import WireError

Bytes = NDArray[np.uint8]
Positions = NDArray[np.int64]

GAPS = 128  # per parameter: 0.06 bits a gap, and short enough to follow the rows of an adapter


def encode_positions(positions: Positions, size: int) -> Bytes:
    """The bytes of strictly ascending positions (k,) in [0, size). No bytes for none and for all."""
    if positions.size in (0, size):
        return np.zeros(0, np.uint8)
    if 2 * positions.size > size:
        positions = _absent(positions, size)
    gaps = np.diff(positions, prepend=-1) - 1
    parameters = _cheapest(gaps)
    widths = _per_gap(parameters, gaps.size)
    bits = np.concatenate([*_low_bits(gaps, widths), _unary(gaps >> widths)])
    return np.concatenate([parameters, np.packbits(bits)])


def decode_positions(payload: Bytes, count: int, size: int) -> Positions:
    """``count`` strictly ascending positions in [0, size) from all of the payload (m,).

    Raises WireError for bytes that do not say exactly that. What is allocated is bounded by
    ``size`` and by the bytes that have really come.
    """
    if count in (0, size):
        if payload.size:
            raise WireError(f"expected no bytes of positions for {count} of {size}, got {payload.size}")
        return np.arange(count, dtype=np.int64)
    if payload.size > max_bytes(count, size):
        raise WireError(f"expected at most {max_bytes(count, size)} bytes of positions, got {payload.size}")
    if 2 * count > size:
        return _absent(_decode_gaps(payload, size - count, size), size)
    return _decode_gaps(payload, count, size)


def max_bytes(count: int, size: int) -> int:
    """The most bytes that ``count`` positions of ``size`` can take, wherever they are."""
    if count in (0, size):
        return 0
    fewer = min(count, size - count)
    rest = size - fewer
    # The parameter of each 128 gaps is the best for them, so no worse than any one for all of them.
    bits = min(fewer * (1 + b) + (rest >> b) for b in range(size.bit_length()))
    return _parameters_of(fewer) + -(-bits // 8)


def _parameters_of(count: int) -> int:
    return -(-count // GAPS)


def _per_gap(parameters: NDArray[Any], count: int) -> NDArray[Any]:
    return np.repeat(parameters, GAPS)[:count]


def _absent(positions: Positions, size: int) -> Positions:
    absent = np.ones(size, bool)
    absent[positions] = False
    return np.flatnonzero(absent)


def _cheapest(gaps: Positions) -> Bytes:
    """The parameter with the fewest bits for each 128 gaps.

    One more bit costs one bit a gap and saves half of the unary zeros, rounded up. What it saves falls
    with each bit, so the first bit that does not pay ends the search.
    """
    starts = np.arange(0, gaps.size, GAPS)
    lengths = np.diff(starts, append=gaps.size)
    parameters = np.zeros(starts.size, np.uint8)
    zeros = np.add.reduceat(gaps, starts)
    while True:
        gaps = gaps >> 1
        fewer = np.add.reduceat(gaps, starts)
        pays = fewer + lengths < zeros
        if not pays.any():
            return parameters
        parameters += pays
        zeros = fewer


def _low_bits(gaps: Positions, widths: Bytes) -> list[Bytes]:
    """Plane j: bit j of every gap that writes more than j bits as they are."""
    return [((gaps[widths > j] >> j) & 1).astype(np.uint8) for j in range(int(widths.max()))]


def _unary(quotients: Positions) -> Bytes:
    ends = np.cumsum(quotients + 1) - 1
    bits = np.zeros(int(ends[-1]) + 1, np.uint8)
    bits[ends] = 1
    return bits


def _decode_gaps(payload: Bytes, count: int, size: int) -> Positions:
    needed, most = _parameters_of(count), size.bit_length()
    parameters, bits = payload[:needed], np.unpackbits(payload[needed:])
    if parameters.size < needed or int(parameters.max()) > most:
        raise WireError(f"expected {needed} Rice parameters of at most {most} for {count} positions")
    widths = _per_gap(parameters, count)
    low = int(widths.sum(dtype=np.int64))
    ends = np.flatnonzero(bits[low:])
    if ends.size != count or (low + int(ends[-1])) // 8 != bits.size // 8 - 1:
        raise WireError(f"expected {count} positions that end in the last byte, got {ends.size}")
    # Exact in float64 for whatever ends below ``size``, and no gap, however large, can overflow it.
    gaps = (np.diff(ends, prepend=-1) - 1) * _per_gap(np.ldexp(1.0, parameters), count)
    _add_low_bits(gaps, bits, widths)
    if gaps.sum() + count > size:
        raise WireError(f"expected positions below {size}, got {gaps.sum() + count - 1:.0f}")
    return np.cumsum(gaps + 1).astype(np.int64) - 1


def _add_low_bits(gaps: NDArray[np.float64], bits: Bytes, widths: Bytes) -> None:
    at = 0
    for j in range(int(widths.max())):
        chosen = np.flatnonzero(widths > j)
        gaps[chosen] += bits[at : at + chosen.size] * 2.0**j
        at += chosen.size
