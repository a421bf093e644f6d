"""Named float32 tensors, and the layout that packs them into one contiguous vector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import LayoutError, WireError

Vector = NDArray[np.float32]
NamedArrays = Mapping[str, NDArray[np.float32]]
Arrays = dict[str, NDArray[np.float32]]
Role = Literal["A", "B", "head", "base"]
ROLES: tuple[Role, ...] = get_args(Role)
PARTS = 64  # of a layout that stay in memory


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
    """Names, roles and shapes of tensors, in the one order that packing uses: by name.

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
        if chosen not in self._parts:
            self._demand(chosen)
            if len(self._parts) == PARTS:
                self._parts.clear()
            self._parts[chosen] = Layout(tuple(spec for spec in self.specs if spec.name in chosen))
        return self._parts[chosen]

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
        return {spec.name: vector[self.span(spec.name)].reshape(spec.shape) for spec in self.specs}

    def span(self, name: str) -> slice:
        """Slice of a tensor's values in the packed vector."""
        start, spec = self._starts[name]
        return slice(start, start + spec.size)

    def limited(self, rank: int | None) -> Layout:
        """The same tensors for an adapter of a lower rank: at most ``rank`` rows of A and columns of B."""
        if rank is None:
            return self
        return Layout(tuple(replace(spec, shape=_limited(spec, rank)) for spec in self.specs))

    def index(self, part: Layout) -> NDArray[np.int64] | None:
        """Positions of the values of ``part`` in a vector of this layout, ascending; None: one to one.

        ``part`` has some of the tensors, of which some may be limited to a lower rank.
        """
        if part.specs == self.specs:
            return None
        places = [np.zeros(0, np.int64)]
        for spec in part:
            start, whole = self._starts[spec.name]
            numbers = np.arange(start, start + whole.size).reshape(whole.shape)
            places.append(numbers[_corner(spec)].ravel())
        return np.concatenate(places)

    def bits(self, names: Collection[str]) -> NDArray[np.float32]:
        """Some of the tensors as numbers for a checkpoint, (tensors,): 1 for each of these, else 0."""
        return np.array([name in names for name in self.names], np.float32)

    def of_bits(self, bits: NDArray[np.float32]) -> frozenset[str]:
        """The tensors of which ``bits`` were made."""
        return frozenset(name for name, bit in zip(self.names, bits, strict=True) if bit)

    def mask(self, names: Iterable[str]) -> str:
        """Some of the tensors as text: one bit for each in the order of packing, as hex.

        Raises LayoutError for a name it lacks.
        """
        chosen = frozenset(names)
        self._demand(chosen)
        bits = "".join("1" if name in chosen else "0" for name in self.names)
        return f"{int(bits or '0', 2):x}"

    def named(self, mask: str) -> frozenset[str]:
        """The tensors of a mask. Raises LayoutError for a text that is none of this layout."""
        try:
            bits = f"{int(mask, 16):0{len(self.names)}b}"
        except ValueError:
            bits = ""
        found = frozenset(name for name, bit in zip(self.names, bits, strict=False) if bit == "1")
        if self.mask(found) != mask:  # one set has one mask
            raise LayoutError(f"{mask[:40]!r} does not name tensors of this layout of {len(self.names)}")
        return found

    def _demand(self, names: frozenset[str]) -> None:
        if unknown := names - self._starts.keys():
            raise LayoutError(f"no such tensors in this layout: {sorted(unknown)}")

    @cached_property
    def of_role(self) -> dict[Role, frozenset[str]]:
        """The names of the tensors of each role."""
        return {role: frozenset(spec.name for spec in self.specs if spec.role == role) for role in ROLES}

    @cached_property
    def _parts(self) -> dict[frozenset[str], Layout]:
        """Layouts that were selected: rounds select the same ones, several times for each message."""
        return {}

    @cached_property
    def _starts(self) -> dict[str, tuple[int, TensorSpec]]:
        starts, at = {}, 0
        for spec in self.specs:
            starts[spec.name] = (at, spec)
            at += spec.size
        return starts


def cut(arrays: NamedArrays, layout: Layout) -> dict[str, NDArray[np.float32]]:
    """The leading corner of each array that the layout has room for."""
    return {spec.name: arrays[spec.name][_corner(spec)] for spec in layout}


def padded(arrays: NamedArrays, layout: Layout) -> dict[str, NDArray[np.float32]]:
    """The arrays with zeros up to the shapes of the layout: an adapter of low rank as one of a higher."""
    whole = {}
    for spec in layout:
        array = arrays[spec.name]
        if array.shape != spec.shape:
            larger = np.zeros(spec.shape, np.float32)
            larger[tuple(slice(0, length) for length in array.shape)] = array
            array = larger
        whole[spec.name] = array
    return whole


def _corner(spec: TensorSpec) -> tuple[slice, ...]:
    return tuple(slice(0, length) for length in spec.shape)


def _limited(spec: TensorSpec, rank: int) -> tuple[int, ...]:
    if len(spec.shape) < 2 or spec.role not in ("A", "B"):
        return spec.shape
    axis = 0 if spec.role == "A" else 1
    return tuple(min(n, rank) if i == axis else n for i, n in enumerate(spec.shape))


def digest(arrays: NamedArrays) -> str:
    """SHA-256 over names, shapes and bits of the arrays, 16 hex digits."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        state.update(f"{name}{array.dtype.str}{array.shape}".encode())
        state.update(array.tobytes())
    return state.hexdigest()[:16]


def check_vector(array: NDArray[Any], size: int | None = None) -> Vector:
    """A float32 vector (size,), all values finite. Raises WireError for anything else; nothing is cast
    or broadcast to fit."""
    fits = array.ndim == 1 if size is None else array.shape == (size,)
    if array.dtype != np.float32 or not fits:
        raise WireError(
            f"expected float32 ({'n' if size is None else size},), got {array.dtype} {array.shape}"
        )
    return check_finite(array)


def check_finite(values: Vector) -> Vector:
    """The values, if all are finite. Raises WireError otherwise."""
    if not np.isfinite(values).all():
        raise WireError(f"{int((~np.isfinite(values)).sum())} values are NaN or infinite")
    return values
