"""The vector of a message: read from the bytes of others, bounded, and known by a digest."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import WireError

MAX_ARRAY_HEADER = 1024
MAX_VALUE = 1e12  # of an update: no training changes a value by more, and no rule overflows in float32


def vector_digest(*vectors: NDArray[Any]) -> str:
    """SHA-256 of the bits of vectors, 32 hex digits."""
    state = hashlib.sha256()
    for vector in vectors:
        state.update(np.ascontiguousarray(vector).tobytes())
    return state.hexdigest()[:32]


def read_array(tensors: list[bytes], dtype: Any, max_bytes: int) -> NDArray[Any]:
    """The one vector (n,) of a serialised message, checked *before* anything is allocated.

    Returns a read-only view of the bytes received. Raises WireError for any other number of arrays,
    dtype, shape or length, and for any other bytes than those that NumPy writes for such a vector.
    """
    if len(tensors) != 1:
        raise WireError(f"expected one array, got {len(tensors)}")
    content, wanted = tensors[0], np.dtype(dtype)
    if len(content) > max_bytes + MAX_ARRAY_HEADER:
        raise WireError(f"{len(content)} bytes, expected at most {max_bytes} of values")
    size = max(len(content) - PREFIX, 0) // wanted.itemsize
    sound = (
        content.startswith(_array_prefix(wanted.str, size))
        and len(content) == PREFIX + size * wanted.itemsize
    )
    if not sound or size * wanted.itemsize > max_bytes:
        raise WireError(_fault(content, wanted))
    return np.frombuffer(content, dtype=wanted, offset=PREFIX)


@lru_cache(maxsize=64)
def _array_prefix(dtype: str, size: int) -> bytes:
    """Bytes that NumPy writes in front of the values of a vector (size,)."""
    stream = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


PREFIX = len(_array_prefix("<f4", 1))  # for a vector of any length


def _fault(content: bytes, wanted: np.dtype[Any]) -> str:
    """Says why bytes are not a vector that is small enough."""
    found, shape = _announced(content)
    if found != wanted.str or len(shape) != 1:
        return f"expected a vector of {wanted}, got {found} {shape}"
    if not content.startswith(_array_prefix(wanted.str, int(shape[0]))):
        return "values do not begin as NumPy writes them: modified in transit"
    return f"announces {shape[0]} values but contains {len(content) - PREFIX} bytes"


def _announced(content: bytes) -> tuple[str, tuple[int, ...]]:
    """The dtype and shape that bytes claim to be: nothing is done with them."""
    stream = io.BytesIO(content[:MAX_ARRAY_HEADER])
    try:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=MAX_ARRAY_HEADER)
    except Exception:  # NumPy's parser meets hostile text with errors of many kinds
        return "no NumPy array", ()
    return dtype.str, shape


def check_size(values: NDArray[Any]) -> None:
    """Raise WireError where a finite value of an update is larger than any that is trained."""
    largest = max(float(values.max(initial=0)), -float(values.min(initial=0)))  # without a copy of them
    if largest > MAX_VALUE:
        raise WireError(f"changes a value by {largest:.3g}, expected at most {MAX_VALUE:g}: lower train.lr")
