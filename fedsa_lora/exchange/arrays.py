"""Named float32 tensors, and the layout that packs them into one contiguous vector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import LayoutError

Vector = NDArray[np.float32]
NamedArrays = Mapping[str, NDArray[np.float32]]
Role = Literal["A", "B", "head", "base"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, order=True)
class TensorSpec:
    """Name, shape and role of one tensor, and the layer that it belongs to.

    ``base`` is a weight of the backbone. The A and the B of one adapter have the same ``layer``.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: str = ""

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Which tensors there are, in the one order that packing uses: by name.

    Raises LayoutError when two tensors have the same name.
    """

    specs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.specs))
        names = [spec.name for spec in ordered]
        if len(set(names)) != len(names):
            raise LayoutError(f"names occur twice: {sorted({n for n in names if names.count(n) > 1})}")
        object.__setattr__(self, "specs", ordered)

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.specs)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @cached_property
    def size(self) -> int:
        """Number of values of the packed vector."""
        return sum(spec.size for spec in self.specs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, shapes and roles, 16 hex digits: equal layouts, equal digests."""
        text = json.dumps([(s.name, s.shape, s.role) for s in self.specs])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def select(self, names: Iterable[str]) -> Layout:
        """The layout of some of the tensors. Raises LayoutError for a name it lacks."""
        chosen = frozenset(names)
        if unknown := chosen - set(self.names):
            raise LayoutError(f"no such tensors in this layout: {sorted(unknown)}")
        return Layout(tuple(spec for spec in self.specs if spec.name in chosen))

    def count(self, role: Role) -> int:
        """Number of values with this role."""
        return sum(spec.size for spec in self.specs if spec.role == role)

    def check(self, arrays: NamedArrays) -> None:
        """Raise LayoutError unless the arrays are exactly these tensors, in float32."""
        missing, extra = set(self.names) - set(arrays), set(arrays) - set(self.names)
        if missing or extra:
            raise LayoutError(f"not these tensors: missing {sorted(missing)}, extra {sorted(extra)}")
        for spec in self.specs:
            array = arrays[spec.name]
            if array.shape != spec.shape or array.dtype != np.float32:
                raise LayoutError(
                    f"{spec.name}: expected float32 {spec.shape}, got {array.dtype} {array.shape}"
                )

    def pack(self, arrays: NamedArrays) -> Vector:
        """One contiguous vector (size,). Raises LayoutError unless names, shapes and dtype are exact."""
        self.check(arrays)
        if not self.specs:
            return np.zeros(0, np.float32)
        return np.concatenate([arrays[spec.name].ravel() for spec in self.specs])

    def unpack(self, vector: Vector) -> dict[str, NDArray[np.float32]]:
        """Views into a vector (size,), by name. Raises LayoutError for another shape or dtype."""
        if vector.shape != (self.size,) or vector.dtype != np.float32:
            raise LayoutError(f"expected float32 ({self.size},), got {vector.dtype} {vector.shape}")
        offsets = np.cumsum([0, *(spec.size for spec in self.specs)])
        return {
            spec.name: vector[start : start + spec.size].reshape(spec.shape)
            for spec, start in zip(self.specs, offsets, strict=False)
        }


def digest(arrays: NamedArrays) -> str:
    """SHA-256 over names, shapes and bits of the arrays, 16 hex digits."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        state.update(f"{name}{array.dtype.str}{array.shape}".encode())
        state.update(array.tobytes())
    return state.hexdigest()[:16]
