"""Broadcast and Upload, and the one door through which bytes of others come in.

A message is one contiguous float32 vector in Flower's ``Parameters`` plus a JSON header under
the key ``fedsa`` of the config or metrics dict, so that Flower's own strategies and mods see
plain float arrays. The vector of a broadcast holds values; that of an upload holds the
*difference* from the broadcast that it answers. Nothing is allocated before its size is known
to be the expected one, and nothing is believed before its digest fits.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import WireError
from fedsa_lora.exchange.arrays import Layout, Vector

KEY = "fedsa"
VERSION = 1
MAX_HEADER_BYTES = 65_536
MAX_EXAMPLES = 10**9


@dataclass(frozen=True)
class BroadcastHeader:
    """What the server asks for. ``measure_before``: also evaluate the client's own model before
    aggregation; ``reference``: also train alone, to compare with."""

    round: int
    layout: str
    digest: str
    measure_before: bool = False
    reference: bool = False
    version: int = VERSION


@dataclass(frozen=True)
class UploadHeader:
    """Who answers which broadcast. ``report`` are numbers about the training; the digests name
    the client's private state before and after the round without revealing it."""

    client: str
    round: int
    layout: str
    digest: str
    examples: int
    private_before: str = ""
    private_after: str = ""
    report: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    version: int = VERSION


Header = TypeVar("Header", BroadcastHeader, UploadHeader)


def vector_digest(vector: Vector) -> str:
    """SHA-256 of a vector's bits, 32 hex digits."""
    return hashlib.sha256(np.ascontiguousarray(vector).tobytes()).hexdigest()[:32]


def write_header(header: BroadcastHeader | UploadHeader) -> dict[str, str]:
    """The entry for Flower's config or metrics dict."""
    return {KEY: json.dumps(asdict(header), separators=(",", ":"), allow_nan=False)}


def read_header(entries: Mapping[str, Any], kind: type[Header]) -> Header:
    """Parse and type-check a header. Raises WireError naming what is wrong."""
    text = entries.get(KEY)
    if not isinstance(text, str) or len(text) > MAX_HEADER_BYTES:
        raise WireError(f"no usable header under {KEY!r}: not sent by this app, or altered on the way")
    try:
        content = json.loads(text)
        header = kind(**content)
    except (ValueError, TypeError, RecursionError) as error:
        raise WireError(f"unreadable header: {error}") from None
    if header.version != VERSION:
        raise WireError(f"header of version {header.version!r}, expected {VERSION}: update the older side")
    _check_types(header)
    return header


def _check_types(header: BroadcastHeader | UploadHeader) -> None:
    plain = {"str": str, "int": int, "bool": bool}
    for name, declared in type(header).__annotations__.items():
        value = getattr(header, name)
        expected = plain.get(str(declared))
        if expected is not None and type(value) is not expected:
            raise WireError(f"header field {name!r} must be {declared}, got {type(value).__name__}")
    if header.round < 0:
        raise WireError(f"header field 'round' must not be negative, got {header.round}")
    if isinstance(header, UploadHeader):
        report = header.report
        if not isinstance(report, dict) or not all(map(_is_number, report.values())):
            raise WireError("header field 'report' must map names to finite numbers")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def read_vector(tensors: list[bytes], layout: Layout) -> Vector:
    """The float32 vector of a serialised message, checked *before* anything is allocated.

    Returns a read-only view (layout.size,) of the bytes received. Raises WireError for any other
    number of arrays, dtype, shape or length, and for values that are not finite.
    """
    if len(tensors) != 1:
        raise WireError(f"expected one array, got {len(tensors)}")
    content, prefix = tensors[0], _array_prefix(layout.size)
    if not content.startswith(prefix):
        raise WireError(f"expected float32 ({layout.size},), got {_announced(content)}")
    if len(content) - len(prefix) != 4 * layout.size:
        raise WireError(f"expected {4 * layout.size} bytes of values, got {len(content) - len(prefix)}")
    return check_vector([np.frombuffer(content, dtype="<f4", offset=len(prefix))], layout)


def _array_prefix(size: int) -> bytes:
    """What NumPy writes in front of the values of a float32 vector (size,)."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (size,)})
    return stream.getvalue()


def _announced(content: bytes) -> str:
    """The dtype and shape that bytes claim to be, for a message: nothing is done with them."""
    stream = io.BytesIO(content)
    try:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=1024)
    except Exception:  # NumPy's parser meets hostile text with errors of many kinds
        return "no NumPy array"
    return f"{dtype} {shape}"


def check_vector(arrays: list[NDArray[Any]], layout: Layout) -> Vector:
    """The one float32 vector (layout.size,) that a message carries, all values finite.

    Raises WireError for anything else; nothing is cast or broadcast to fit.
    """
    if len(arrays) != 1:
        raise WireError(f"expected one array, got {len(arrays)}")
    vector = arrays[0]
    if vector.dtype != np.float32 or vector.shape != (layout.size,):
        raise WireError(f"expected float32 ({layout.size},), got {vector.dtype} {vector.shape}")
    if not np.isfinite(vector).all():
        raise WireError(f"{int((~np.isfinite(vector)).sum())} values are NaN or infinite")
    return vector


def check_belongs(header: BroadcastHeader | UploadHeader, vector: Vector, layout: Layout) -> None:
    """Raise WireError unless header, vector and layout belong together."""
    if header.layout != layout.digest:
        raise WireError(
            f"tensors of layout {header.layout}, expected {layout.digest} ({len(layout.names)} tensors, "
            f"{layout.size} values): both sides must run the same model, lora and split"
        )
    if header.digest != vector_digest(vector):
        raise WireError("digest does not fit the values: altered or cut off on the way")


def check_upload(header: UploadHeader, round_: int, needed: Sequence[str] = ()) -> None:
    """Raise WireError unless an upload answers this round, with a believable weight and with the
    ``needed`` numbers in its report."""
    if header.error:
        raise WireError(header.error)
    if header.round != round_:
        raise WireError(f"answers round {header.round}, this is round {round_}")
    if not 0 < header.examples <= MAX_EXAMPLES:
        raise WireError(f"claims {header.examples} examples, expected 1 to {MAX_EXAMPLES}")
    if missing := [name for name in needed if name not in header.report]:
        raise WireError(f"its report lacks {missing}")
