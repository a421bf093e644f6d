"""Codecs: a difference as one array for the wire, and back. What is left out is kept for later.

A codec chooses which values travel (all, or what ``fedsa_lora.exchange.selection`` selects) and how each is
written (``fedsa_lora.exchange.numbers``). A payload is one array: float32 (n,) for dense fp32, so that
Flower's own mods see plain floats; for all others uint8 (m,), sections back to back: seed or count, values,
positions (``fedsa_lora.exchange.positions``). An empty vector has an empty payload.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, WireError
from fedsa_lora.exchange.arrays import Vector, check_vector
from fedsa_lora.exchange.numbers import FORMATS, NumberFormat, Numbers, numbers
from fedsa_lora.exchange.positions import Bytes, Positions
from fedsa_lora.group import Group

MAX_BLOCK = 65_536


@dataclass(frozen=True)
class Sparse:
    """Decoded upload: values (k,) at strictly ascending positions (k,) of a vector (size,).

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


class Codec(Group, ABC):
    """A choice of values and a number format.

    ``values`` is the number format on the wire: fp32, fp16, bf16, int8 or int4. ``block`` values of int8
    and int4 share a scale. With ``error_feedback`` the client keeps what was not sent and adds it to its
    next update, see ``stages.Coded``. Raises ConfigError for settings out of range.
    """

    values: NumberFormat
    block: int
    error_feedback: bool

    may_send_nothing: ClassVar[bool] = False  # of a vector with values

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
        """Decodes the upload of a vector (size,). Raises WireError for what ``encode`` cannot have made.

        The payload's length is checked first; what is allocated is bounded by it and by ``size``.
        """

    @abstractmethod
    def max_bytes(self, size: int) -> int:
        """The most bytes of a payload of a vector (size,)."""

    @property
    @abstractmethod
    def selection(self) -> str:
        """The choice of values that travel, in a word or two."""

    @property
    @abstractmethod
    def sparse(self) -> bool:
        """True where values are left out."""

    @property
    def lossless(self) -> bool:
        """True where every vector comes back bit-identical."""
        return not self.sparse and self.values == "fp32"

    @property
    def leaves(self) -> bool:
        """A client keeps what was not sent, for its next update."""
        return self.error_feedback and not self.lossless

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

    def checked(self, payload: NDArray[Any], size: int) -> Bytes:
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
        check_vector(vector)
        return vector.copy() if self.lossless else self.numbers.encode(vector, rng)

    def decode(self, payload: NDArray[Any], size: int) -> Sparse:
        if not self.lossless:
            return Sparse(size, None, self.numbers.decode(self.checked(payload, size), size))
        if payload.dtype != np.float32 or payload.shape != (size,):
            raise WireError(f"expected float32 ({size},), got {payload.dtype} {payload.shape}")
        check_vector(payload)
        return Sparse(size, None, payload)

    def max_bytes(self, size: int) -> int:
        return self.numbers.bytes_of(size)
