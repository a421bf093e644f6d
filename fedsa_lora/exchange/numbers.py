"""Number formats of values on the wire: fp32, fp16, bf16, or int8 and int4 with a scale per block of values.

Each format writes float32 values (k,) as bytes whose number depends on k alone, and finite values
stay finite: what a format cannot hold is sent as its largest number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import WireError
from fedsa_lora.exchange.arrays import Vector, check_finite

Bytes = NDArray[np.uint8]
NumberFormat = Literal["fp32", "fp16", "bf16", "int8", "int4"]
FORMATS: tuple[NumberFormat, ...] = get_args(NumberFormat)

CHUNK = 1 << 16  # values quantised at a time: the passes over them stay in the cache
LARGEST_BF16 = np.uint32(0x7F7F0000).view(np.float32)


class Numbers(Protocol):
    """One number format."""

    def bytes_of(self, count: int) -> int:
        """The bytes of ``count`` values."""

    def encode(self, values: Vector, rng: np.random.Generator) -> Bytes:
        """The bytes of finite values (k,)."""

    def decode(self, payload: Bytes, count: int) -> Vector:
        """Finite values (count,) from all of the payload. Raises WireError for anything else."""


def numbers(name: NumberFormat, block: int) -> Numbers:
    """The format of this name; ``block`` values of int8 and int4 have one scale."""
    if name in FLOATS:
        return FLOATS[name]
    return Quantised(name, block, largest=127) if name == "int8" else Quantised(name, block, largest=7)


@dataclass(frozen=True)
class Floats:
    """Floating-point numbers of ``width`` bytes, rounded to nearest, ties to even."""

    name: str
    width: int
    write: Callable[[Vector], Bytes]
    read: Callable[[Bytes], Vector]

    def bytes_of(self, count: int) -> int:
        return self.width * count

    def encode(self, values: Vector, rng: np.random.Generator) -> Bytes:
        return self.write(values)

    def decode(self, payload: Bytes, count: int) -> Vector:
        values = self.read(_expect(payload, self.bytes_of(count), count, self.name))
        return check_finite(values)


def _write_fp32(values: Vector) -> Bytes:
    return values.astype("<f4").view(np.uint8)


def _read_fp32(payload: Bytes) -> Vector:
    return payload.view("<f4").astype(np.float32)


def _write_fp16(values: Vector) -> Bytes:
    return np.clip(values, -65504, 65504).astype("<f2").view(np.uint8)


def _read_fp16(payload: Bytes) -> Vector:
    return payload.view("<f2").astype(np.float32)


def _write_bf16(values: Vector) -> Bytes:
    bits = np.clip(values, -LARGEST_BF16, LARGEST_BF16).view(np.uint32)
    # Adding just under half of the last place kept, and one more where that place is odd, carries where
    # nearest-even rounds away from zero.
    bits += 0x7FFF + (bits >> 16 & 1)
    return (bits >> 16).astype("<u2").view(np.uint8)


def _read_bf16(payload: Bytes) -> Vector:
    return (payload.view("<u2").astype(np.uint32) << 16).view(np.float32)


FLOATS: dict[str, Numbers] = {
    "fp32": Floats("fp32", 4, _write_fp32, _read_fp32),
    "fp16": Floats("fp16", 2, _write_fp16, _read_fp16),
    "bf16": Floats("bf16", 2, _write_bf16, _read_bf16),
}


@dataclass(frozen=True)
class Quantised:
    """Whole numbers in [-largest, largest] times a float32 scale per block, rounded at random.

    A value x with scale s = max|x| / largest becomes floor(x / s + u) with u uniform in [0, 1), so the mean
    over draws is x (QSGD, arXiv:1610.02132). Bytes: all scales, then one or half a byte a value.
    """

    name: str
    block: int
    largest: int

    def bytes_of(self, count: int) -> int:
        return 4 * self._blocks(count) + self._code_bytes(count)

    def encode(self, values: Vector, rng: np.random.Generator) -> Bytes:
        scales = self._scales(values)
        codes = np.empty(values.size, np.int8)
        step = max(1, CHUNK // self.block) * self.block
        for start in range(0, values.size, step):
            part = slice(start, start + step)
            codes[part] = self._round(values[part], scales[start // self.block :], rng)
        packed = codes.view(np.uint8) if self.largest > 7 else _pack_nibbles(codes)
        return np.concatenate([scales.astype("<f4").view(np.uint8), packed])

    def decode(self, payload: Bytes, count: int) -> Vector:
        _expect(payload, self.bytes_of(count), count, self.name)
        cut = 4 * self._blocks(count)
        scales = payload[:cut].view("<f4").astype(np.float32)
        if not ((scales >= 0) & (scales <= self._largest_scale())).all():
            raise WireError(f"expected {self.name} scales of 0 to {self._largest_scale():.4g}")
        codes = payload[cut:].view(np.int8) if self.largest > 7 else _unpack_nibbles(payload[cut:], count)
        if count and int(codes.min()) < -self.largest:
            raise WireError(f"expected {self.name} values of {-self.largest} to {self.largest}")
        values = codes.astype(np.float32)
        values *= np.repeat(scales, self.block)[:count]
        return values

    def _blocks(self, count: int) -> int:
        return -(-count // self.block)

    def _code_bytes(self, count: int) -> int:
        return count if self.largest > 7 else -(-count // 2)

    def _scales(self, values: Vector) -> Vector:
        """The smallest scale (blocks,) whose multiple ``largest`` reaches the largest |x| of each block."""
        if not values.size:
            return np.zeros(0, np.float32)
        most = np.maximum.reduceat(np.abs(values), np.arange(0, values.size, self.block)).astype(np.float64)
        scales = (most / self.largest).astype(np.float32)
        # Rounded up: with a scale rounded down (by up to a half where max|x| is subnormal) the largest values
        # would be clipped, always inwards, and their mean would be off.
        low = scales * np.float64(self.largest) < most
        scales[low] = np.nextafter(scales[low], np.float32(np.inf))
        return np.minimum(scales, self._largest_scale())

    def _largest_scale(self) -> np.float32:
        """The scale with which ``largest`` still is a finite float32."""
        scale: np.float32 = np.nextafter(np.float32(np.finfo(np.float32).max / self.largest), np.float32(0))
        return scale

    def _round(self, values: Vector, scales: Vector, rng: np.random.Generator) -> NDArray[np.int8]:
        scales = np.repeat(scales[: self._blocks(values.size)], self.block)[: values.size]
        levels = np.divide(values, scales, out=np.zeros_like(values), where=scales > 0)
        # Odd multiples of 2**-17: the sum with a whole number below 128 is exact, so what is representable
        # never moves; the chance of rounding up is off by at most 2**-17, to either side.
        noise = rng.integers(0, 1 << 16, values.size, np.uint16).astype(np.float32)
        levels += (noise + np.float32(0.5)) * np.float32(2**-16)
        np.floor(levels, out=levels)
        return np.clip(levels, -self.largest, self.largest, out=levels).astype(np.int8)


def _pack_nibbles(codes: NDArray[np.int8]) -> Bytes:
    """Two codes a byte, the first in the low half, each plus 8; the last half is 0 where there is none."""
    halves = np.zeros(codes.size + codes.size % 2, np.uint8)
    np.add(codes, 8, out=halves[: codes.size], casting="unsafe")
    halves[1::2] <<= 4
    return halves[::2] | halves[1::2]


def _unpack_nibbles(payload: Bytes, count: int) -> NDArray[np.int8]:
    halves = np.empty((payload.size, 2), np.int8)
    halves[:, 0] = payload & 15
    halves[:, 1] = payload >> 4
    codes = halves.ravel()
    if codes[count:].any():
        raise WireError("expected zeros as padding after the last int4 value")
    return codes[:count] - np.int8(8)


def _expect(payload: Bytes, length: int, count: int, name: str) -> Bytes:
    if payload.size != length:
        raise WireError(f"expected {length} bytes of {count} {name} values, got {payload.size}")
    return payload
