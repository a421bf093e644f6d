"""Codecs that select: the largest values, random ones, or those above a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, WireError
from fedsa_lora.exchange import positions as coding
from fedsa_lora.exchange.arrays import Vector, check_vector
from fedsa_lora.exchange.codec import Codec, Sparse
from fedsa_lora.exchange.numbers import NumberFormat, Numbers
from fedsa_lora.exchange.positions import Bytes, Positions, decode_positions, encode_positions

HEAD = 8  # bytes of a seed or of a count, little-endian


@dataclass(frozen=True)
class _Share(Codec):
    """A codec that sends a ``ratio`` of n values: k = max(1, ceil(ratio n))."""

    ratio: float
    values: NumberFormat = "fp32"
    block: int = 256
    error_feedback: bool = True

    def __post_init__(self) -> None:
        if not _is_number(self.ratio) or not 0 < self.ratio <= 1:
            raise ConfigError(
                f"ratio={self.ratio!r}: expected more than 0 and at most 1, the share of values that is sent"
            )
        super().__post_init__()

    @property
    def sparse(self) -> bool:
        return self.ratio < 1

    def count(self, size: int) -> int:
        """k of n = ``size`` values. The ratio is the decimal that was written: 0.07 of 100 is 7."""
        return min(size, max(1, math.ceil(Fraction(repr(float(self.ratio))) * size)))


@dataclass(frozen=True)
class TopK(_Share):
    """The k values that are largest in magnitude, over the whole vector; of equals, the first.

    A contraction: ||x - C(x)||^2 <= (1 - k / n) ||x||^2 (arXiv:1809.07599), hence error feedback.
    """

    @property
    def selection(self) -> str:
        return f"top_k {float(self.ratio)!r}"

    def encode(self, vector: Vector, rng: np.random.Generator) -> NDArray[Any]:
        check_vector(vector)
        # The bits of magnitudes have their order, and whole numbers are selected twice as fast.
        chosen = largest(np.abs(vector).view(np.uint32), self.count(vector.size))
        return np.concatenate(
            [self.numbers.encode(vector[chosen], rng), encode_positions(chosen, vector.size)]
        )

    def decode(self, payload: NDArray[Any], size: int) -> Sparse:
        return _read_sparse(self.numbers, self.checked(payload, size), self.count(size), size)

    def max_bytes(self, size: int) -> int:
        return self.numbers.bytes_of(self.count(size)) + coding.max_bytes(self.count(size), size)


@dataclass(frozen=True)
class RandomK(_Share):
    """k random values; their positions travel as a seed of 8 bytes.

    With error feedback the values are sent as they are: a contraction in the mean, by 1 - k / n. Without
    it they are multiplied by n / k, so that the mean over seeds is the vector (arXiv:1809.07599).
    """

    @property
    def selection(self) -> str:
        return f"random_k {float(self.ratio)!r}"

    def encode(self, vector: Vector, rng: np.random.Generator) -> NDArray[Any]:
        check_vector(vector)
        count = self.count(vector.size)
        if count == vector.size:
            return self.numbers.encode(vector, rng)
        seed = np.frombuffer(rng.bytes(HEAD), np.uint8)
        values = vector[self._positions(seed, vector.size)]
        if not self.error_feedback:
            most = np.finfo(np.float32).max
            values = np.clip(values * np.float64(vector.size / count), -most, most).astype(np.float32)
        return np.concatenate([seed, self.numbers.encode(values, rng)])

    def decode(self, payload: NDArray[Any], size: int) -> Sparse:
        payload, count = self.checked(payload, size), self.count(size)
        if count == size:
            return Sparse(size, None, self.numbers.decode(payload, size))
        values = self.numbers.decode(payload[HEAD:], count)
        return Sparse(size, self._positions(payload[:HEAD], size), values)

    def max_bytes(self, size: int) -> int:
        head = HEAD if self.count(size) < size else 0
        return head + self.numbers.bytes_of(self.count(size))

    def _positions(self, seed: Bytes, size: int) -> Positions:
        # Raw bits of PCG64 stay the same in every version of NumPy; Generator.choice may change, and
        # the two sides need not have the same version.
        bits = np.random.PCG64(int.from_bytes(seed.tobytes(), "little")).random_raw(-(-size // 2))
        return largest(bits.astype("<u8", copy=False).view("<u4")[:size], self.count(size))


@dataclass(frozen=True)
class Threshold(Codec):
    """The values of at least ``threshold`` in magnitude, be they none or all; their number travels."""

    threshold: float
    values: NumberFormat = "fp32"
    block: int = 256
    error_feedback: bool = True

    sparse = True
    may_send_nothing = True

    def __post_init__(self) -> None:
        if not _is_number(self.threshold) or not 0 < self.threshold < math.inf:
            raise ConfigError(
                f"threshold={self.threshold!r}: expected a finite number above 0, "
                "the least magnitude that is sent"
            )
        super().__post_init__()

    @property
    def selection(self) -> str:
        return f"threshold {float(self.threshold)!r}"

    def encode(self, vector: Vector, rng: np.random.Generator) -> NDArray[Any]:
        check_vector(vector)
        if not vector.size:
            return np.zeros(0, np.uint8)
        # As float64: a threshold below the least float32 must not become 0.
        chosen = np.flatnonzero(np.abs(vector) >= np.float64(self.threshold))
        count = np.frombuffer(chosen.size.to_bytes(HEAD, "little"), np.uint8)
        values = self.numbers.encode(vector[chosen], rng)
        return np.concatenate([count, values, encode_positions(chosen, vector.size)])

    def decode(self, payload: NDArray[Any], size: int) -> Sparse:
        payload = self.checked(payload, size)
        if not size:
            return Sparse(0, None, np.zeros(0, np.float32))
        count = int.from_bytes(payload[:HEAD].tobytes(), "little")
        if payload.size < HEAD or count > size:
            raise WireError(f"expected a count of at most {size} in {HEAD} bytes, got {count}")
        return _read_sparse(self.numbers, payload[HEAD:], count, size)

    def max_bytes(self, size: int) -> int:
        # Values cost most for all of ``size``, positions for half of them.
        half = coding.max_bytes(size // 2, size)
        return HEAD + self.numbers.bytes_of(size) + half if size else 0


def largest(scores: NDArray[Any], count: int) -> Positions:
    """The ascending positions (count,) of the largest of scores (n,); of equals, the first."""
    if count == scores.size:
        return np.arange(count)
    least = np.partition(scores, scores.size - count)[scores.size - count]
    chosen = scores > least
    missing = count - int(np.count_nonzero(chosen))
    chosen[np.flatnonzero(scores == least)[:missing]] = True
    return np.flatnonzero(chosen)


def _read_sparse(format_: Numbers, payload: Bytes, count: int, size: int) -> Sparse:
    cut = format_.bytes_of(count)
    values = format_.decode(payload[:cut], count)
    found = decode_positions(payload[cut:], count, size)
    return Sparse(size, None if count == size else found, values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
