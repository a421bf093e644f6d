"""Codecs: a difference as one array for the wire, and back. What is left out is kept for later.

A codec chooses which values travel (all, the largest, random ones, those above a threshold) and how each is
written (``fedsa_lora.exchange.numbers``). A payload is one array: float32 (n,) for dense fp32, so that
Flower's own mods see plain floats; for all others uint8 (m,), sections back to back: seed or count, values,
positions (``fedsa_lora.exchange.positions``). An empty vector has an empty payload.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, WireError
from fedsa_lora.exchange import positions as coding
from fedsa_lora.exchange.arrays import Vector
from fedsa_lora.exchange.numbers import FORMATS, NumberFormat, Numbers, numbers
from fedsa_lora.exchange.positions import Bytes, Positions, decode_positions, encode_positions

HEAD = 8  # bytes of a seed or of a count, little-endian
MAX_BLOCK = 65_536


@dataclass(frozen=True)
class Sparse:
    """What decoding gives: values (k,) at strictly ascending positions (k,) of a vector (size,).

    No positions: the values are the whole vector.
    """

    size: int
    positions: Positions | None
    values: Vector

    def dense(self) -> Vector:
        """The vector (size,), zero where nothing was sent; the values themselves if they are all."""
        if self.positions is None:
            return self.values
        vector = np.zeros(self.size, np.float32)
        vector[self.positions] = self.values
        return vector


class Codec(ABC):
    """A choice of values and a number format.

    ``block`` values of int8 and int4 share a scale. With ``error_feedback`` the client keeps what was not
    sent and adds it to its next update, see ``compress``. Raises ConfigError for settings out of range.
    """

    values: NumberFormat
    block: int
    error_feedback: bool

    def __post_init__(self) -> None:
        if self.values not in FORMATS:
            raise ConfigError(f"values={self.values!r}: expected one of {', '.join(FORMATS)}")
        if type(self.block) is not int or not 1 <= self.block <= MAX_BLOCK:
            raise ConfigError(
                f"block={self.block!r}: expected a whole number of 1 to {MAX_BLOCK}, "
                "the values of int8 and int4 that share a scale"
            )

    @abstractmethod
    def encode(self, vector: Vector, rng: np.random.Generator) -> NDArray[Any]:
        """The payload of a vector (n,). Raises WireError unless it is float32, flat and finite."""

    @abstractmethod
    def decode(self, payload: NDArray[Any], size: int) -> Sparse:
        """What was sent of a vector (size,). Raises WireError for what ``encode`` cannot have made.

        The payload's length is checked first; what is allocated is bounded by it and by ``size``.
        """

    @abstractmethod
    def max_bytes(self, size: int) -> int:
        """The most bytes of a payload of a vector (size,)."""

    @property
    @abstractmethod
    def selection(self) -> str:
        """Which values travel, in a word or two."""

    @property
    @abstractmethod
    def sparse(self) -> bool:
        """Whether values are left out."""

    @property
    def lossless(self) -> bool:
        """Whether every vector comes back with the same bits."""
        return not self.sparse and self.values == "fp32"

    @property
    def dtype(self) -> type[np.float32] | type[np.uint8]:
        """The dtype of a payload."""
        return np.uint8

    @property
    def name(self) -> str:
        """All that decoding depends on, such as ``top_k 0.1 int8/256``: the same on both sides, or no run."""
        block = f"/{self.block}" if self.values.startswith("int") else ""
        return f"{self.selection} {self.values}{block}"

    @cached_property
    def numbers(self) -> Numbers:
        return numbers(self.values, self.block)

    def _read(self, payload: NDArray[Any], size: int) -> Bytes:
        """The payload's bytes, after its dtype, shape and length have been found possible."""
        if payload.dtype != np.uint8 or payload.ndim != 1 or payload.size > self.max_bytes(size):
            raise WireError(
                f"expected at most {self.max_bytes(size)} bytes of {self.name} as uint8 (m,), "
                f"got {payload.dtype} {payload.shape}"
            )
        return np.ascontiguousarray(payload)


@dataclass(frozen=True)
class Dense(Codec):
    """Every value."""

    values: NumberFormat = "fp32"
    block: int = 256
    error_feedback: bool = True

    selection = "dense"
    sparse = False

    @property
    def dtype(self) -> type[np.float32] | type[np.uint8]:
        return np.float32 if self.lossless else np.uint8

    def encode(self, vector: Vector, rng: np.random.Generator) -> NDArray[Any]:
        _check(vector)
        return vector.copy() if self.lossless else self.numbers.encode(vector, rng)

    def decode(self, payload: NDArray[Any], size: int) -> Sparse:
        if not self.lossless:
            return Sparse(size, None, self.numbers.decode(self._read(payload, size), size))
        if payload.dtype != np.float32 or payload.shape != (size,):
            raise WireError(f"expected float32 ({size},), got {payload.dtype} {payload.shape}")
        _check(payload)
        return Sparse(size, None, payload)

    def max_bytes(self, size: int) -> int:
        return self.numbers.bytes_of(size)


class _Share(Codec):
    """A codec that sends k = max(1, ceil(ratio n)) of n values."""

    ratio: float

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

    ratio: float
    values: NumberFormat = "fp32"
    block: int = 256
    error_feedback: bool = True

    @property
    def selection(self) -> str:
        return f"top_k {float(self.ratio)!r}"

    def encode(self, vector: Vector, rng: np.random.Generator) -> NDArray[Any]:
        _check(vector)
        # The bits of magnitudes have their order, and whole numbers are selected twice as fast.
        chosen = largest(np.abs(vector).view(np.uint32), self.count(vector.size))
        return np.concatenate(
            [self.numbers.encode(vector[chosen], rng), encode_positions(chosen, vector.size)]
        )

    def decode(self, payload: NDArray[Any], size: int) -> Sparse:
        return _read_sparse(self.numbers, self._read(payload, size), self.count(size), size)

    def max_bytes(self, size: int) -> int:
        return self.numbers.bytes_of(self.count(size)) + coding.max_bytes(self.count(size), size)


@dataclass(frozen=True)
class RandomK(_Share):
    """k random values; their positions travel as a seed of 8 bytes.

    With error feedback the values are sent as they are: a contraction in the mean, by 1 - k / n. Without
    it they are multiplied by n / k, so that the mean over seeds is the vector (arXiv:1809.07599).
    """

    ratio: float
    values: NumberFormat = "fp32"
    block: int = 256
    error_feedback: bool = True

    @property
    def selection(self) -> str:
        return f"random_k {float(self.ratio)!r}"

    def encode(self, vector: Vector, rng: np.random.Generator) -> NDArray[Any]:
        _check(vector)
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
        payload, count = self._read(payload, size), self.count(size)
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
        _check(vector)
        if not vector.size:
            return np.zeros(0, np.uint8)
        # As float64: a threshold below the least float32 must not become 0.
        chosen = np.flatnonzero(np.abs(vector) >= np.float64(self.threshold))
        count = np.frombuffer(chosen.size.to_bytes(HEAD, "little"), np.uint8)
        values = self.numbers.encode(vector[chosen], rng)
        return np.concatenate([count, values, encode_positions(chosen, vector.size)])

    def decode(self, payload: NDArray[Any], size: int) -> Sparse:
        payload = self._read(payload, size)
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


def compress(
    codec: Codec, update: Vector, residual: Vector | None, rng: np.random.Generator
) -> tuple[NDArray[Any], Vector | None]:
    """The payload of update (n,) + residual (n,), and the residual that is left for the next round.

    Error feedback: e <- u + e - C(u + e), so nothing is lost but by rounding (Seide et al. 2014;
    arXiv:1901.09847). No residual is left where the codec is lossless or has no error feedback.
    """
    with np.errstate(over="ignore"):  # encode refuses what is not finite, with a message
        total = update if residual is None else update + residual
    payload = codec.encode(total, rng)
    if codec.lossless or not codec.error_feedback:
        return payload, None
    sent = codec.decode(payload, total.size)
    left = total.copy()
    left[slice(None) if sent.positions is None else sent.positions] -= sent.values
    return payload, left


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


def _check(vector: NDArray[Any]) -> None:
    if vector.dtype != np.float32 or vector.ndim != 1:
        raise WireError(f"expected float32 (n,), got {vector.dtype} {vector.shape}")
    if not np.isfinite(vector).all():
        raise WireError(f"{int((~np.isfinite(vector)).sum())} values are NaN or infinite")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
