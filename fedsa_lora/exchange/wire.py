"""Broadcast and Upload, and the one door through which bytes of others come in.

A message is one contiguous vector in Flower's ``Parameters`` plus a JSON header under the key
``fedsa`` of the config or metrics dict, in an upload deflated. With the dense codec the vector is
float32, so that Flower's own strategies and mods see plain float arrays; other codecs send bytes.
A broadcast holds values, or the change since one that the client has seen; an upload the
*difference* from the broadcast that it answers. Nothing is allocated before its size is known to be
an expected one (``exchange/vector.py``), and nothing is believed before its digest fits.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar, cast

from numpy.typing import NDArray

from fedsa_lora.errors import LayoutError, WireError
from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.exchange.reported import Numbers
from fedsa_lora.exchange.vector import vector_digest

KEY = "fedsa"
REQUEST = "request"  # beside the header: the word for work other than plain training
VERSION = 6
MAX_HEADER_BYTES = 262_144
SHORT = 4096  # characters or bytes of a header that is kept once it is read
MAX_EXAMPLES = 10**9
MAX_ROUND = 10**9
# What the texts of a header may be, but for the client's id, which the server compares with the one it
# knows, and for the text of an error, of which it keeps one line (Remark.of in strategies/round/admission.py)
_DIGEST, _MASK = re.compile(r"([0-9a-f]{16}|[0-9a-f]{32})?"), re.compile(r"[0-9a-f]*")
_TEXTS = {
    **dict.fromkeys(("layout", "digest", "private_before", "private_after"), _DIGEST),
    **dict.fromkeys(("shared", "carried", "joining"), _MASK),
    "codec": re.compile(r"[ -~]{0,200}"),
    "run": re.compile(r"[A-Za-z0-9._-]{0,64}"),
    "resumed": re.compile(r"[0-9]{4,9}"),
}


def stretch(resumed: int) -> str:
    """The part of a run since it was resumed so often, in four digits: no message is longer for it."""
    return f"{resumed:04}"


@dataclass(frozen=True)
class BroadcastHeader:
    """Header of a message to a client.

    ``digest`` is that of the values which the client is to hold once it has read the message.
    ``shared`` are the tensors to be uploaded this round, ``joining`` those of them that a client which
    had them to itself starts from its own value, ``carried`` those that are in the message (masks of
    the layout). ``base`` is the round whose broadcast the message is the change from, coded by
    ``codec``; 0: the values themselves. ``merge`` are the ranks, layer by layer, of the factors that
    every client adds to its frozen weights. ``total``: the examples of all clients in the mean that the
    message holds, sent to those of them whose method takes their own part off it; 0: not sent.
    ``measure_before``: also evaluate the client's own model before aggregation; ``reference``: also train
    alone, to compare with. ``run`` is the server's word for this run, through all its resumptions;
    ``resumed`` says how many there have been, as ``stretch`` has it.
    """

    round: int
    layout: str
    digest: str
    shared: str
    carried: str
    joining: str = "0"
    base: int = 0
    codec: str = ""
    merge: Sequence[int] = ()
    total: int = 0
    measure_before: bool = False
    reference: bool = False
    run: str = ""
    resumed: str = stretch(0)
    version: int = VERSION


@dataclass(frozen=True)
class UploadHeader:
    """Header of an answer to a broadcast, with a difference in the tensors of ``shared`` coded by ``codec``.

    ``examples`` are the client's train examples, ``measured`` those of its held-out part that the metrics of
    ``report`` are of; 0: it has none, or was not asked, and reports no metrics.
    ``counts`` are its train examples by class, where a shared head is averaged by them;
    ``scores`` the importance of tensors in the order of the layout. ``report`` are numbers about the
    training and metrics; the digests name the client's private state before and after the round without
    revealing it.
    """

    client: str
    round: int
    layout: str
    digest: str
    examples: int
    measured: int = 0
    shared: str = "0"
    codec: str = ""
    counts: Sequence[int] = ()
    scores: Sequence[float] = ()
    private_before: str = ""
    private_after: str = ""
    report: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    version: int = VERSION


Header = TypeVar("Header", BroadcastHeader, UploadHeader)


def write_header(header: BroadcastHeader | UploadHeader) -> dict[str, str | bytes]:
    """The entry for Flower's config or metrics dict."""
    text = _json(header)
    return {KEY: deflated(text) if isinstance(header, UploadHeader) else text}


def _json(header: BroadcastHeader | UploadHeader) -> str:
    return json.dumps(vars(header), separators=(",", ":"), allow_nan=False)


# An upload's header from which others differ in digests and numbers alone: what both sides know beforehand
# and need not send. Other fields, or another text here, are another version.
_USUAL = _json(
    UploadHeader(
        client="0",
        round=1,
        layout="",
        digest="",
        examples=1,
        codec="dense",
        report={"loss": 1.0, "steps": 5.0, "tokens": 1.0, "padded_tokens": 1.0, "seconds": 0.1},
    )
).encode()


def deflated(text: str) -> bytes:
    """The text of an upload's header as it is sent: a deflated stream without header (RFC 1951), whose
    dictionary is a usual header."""
    packer = zlib.compressobj(zlib.Z_BEST_COMPRESSION, wbits=-zlib.MAX_WBITS, memLevel=9, zdict=_USUAL)
    return packer.compress(text.encode()) + packer.flush()


def inflated(content: bytes) -> str | None:
    """The text of an upload's header; None where it is none, or longer than any, of which no more is read."""
    unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS, zdict=_USUAL)
    try:
        text = unpacker.decompress(content, MAX_HEADER_BYTES)
        return text.decode() if unpacker.eof and not unpacker.unused_data else None
    except (zlib.error, UnicodeDecodeError):
        return None


def read_header(entries: Mapping[str, Any], kind: type[Header]) -> Header:
    """Parse and type-check a header. Raises WireError naming what is wrong."""
    text = entries.get(KEY)
    sound = isinstance(text, bytes if kind is UploadHeader else str) and len(text) <= MAX_HEADER_BYTES
    text = text if sound else None
    read = _read_once if text is not None and len(text) <= SHORT else _read
    return cast(Header, read(text, kind is UploadHeader))


def _read(text: str | bytes | None, uploaded: bool) -> BroadcastHeader | UploadHeader:
    if isinstance(text, bytes):
        text = inflated(text)
    if text is None or len(text) > MAX_HEADER_BYTES:
        raise WireError(f"no usable header under {KEY!r}: not sent by this app, or modified in transit")
    try:
        content: dict[str, Any] = json.loads(text, object_pairs_hook=_once)
        values = {name: _plain(value) for name, value in content.items()}
        header = UploadHeader(**values) if uploaded else BroadcastHeader(**values)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"unreadable header: {error}") from None
    _check_types(header)
    return header


# A broadcast is the same for many clients, and what a client sends is read again for its own record.
_read_once = lru_cache(maxsize=32)(_read)


def _plain(value: Any) -> Any:
    """A list as a tuple. The numbers of a mapping as floats; -0.0, the loss of a perfect model, as 0.0."""
    if isinstance(value, dict):
        return {key: float(part) + 0.0 if _is_number(part) else part for key, part in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a key that stands in it twice: readers differ in which counts."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("it has a key twice")
    return content


def _check_types(header: BroadcastHeader | UploadHeader) -> None:
    plain = {"str": str, "int": int, "bool": bool}
    for name, declared in type(header).__annotations__.items():
        value = getattr(header, name)
        expected = plain.get(str(declared))
        if expected is not None and type(value) is not expected:
            raise WireError(f"header field {name!r} must be {declared}, got {type(value).__name__}")
    if header.version != VERSION:
        raise WireError(f"header of version {header.version}, expected {VERSION}: update the older side")
    if not 0 <= header.round <= MAX_ROUND:
        raise WireError(f"header field 'round' must be 0 to {MAX_ROUND}, got {header.round}")
    for name, sound in _TEXTS.items():
        value = getattr(header, name, None)  # it may be a field of the other kind of header
        if value is not None and not sound.fullmatch(value):
            raise WireError(f"header field {name!r} is {value[:40]!r}: expected to match {sound.pattern}")
    if isinstance(header, BroadcastHeader):
        if header.total < 0:
            raise WireError(f"header field 'total' must not be negative, got {header.total}")
        _check_list("merge", header.merge, lambda value: type(value) is int and value >= 0)
        return
    _check_list("counts", header.counts, lambda value: type(value) is int and 0 <= value <= MAX_EXAMPLES)
    _check_list("scores", header.scores, lambda value: _is_number(value) and value >= 0)  # type: ignore[operator]
    report = header.report
    if not isinstance(report, dict) or not all(map(_is_number, report.values())):
        raise WireError("header field 'report' must map names to finite numbers")


def _check_list(name: str, values: object, sound: Callable[[object], bool]) -> None:
    if not isinstance(values, list | tuple) or not all(map(sound, values)):
        raise WireError(f"header field {name!r} must be a list of finite numbers, none negative")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def check_layout(header: BroadcastHeader | UploadHeader, layout: Layout) -> None:
    """Raise WireError unless both sides mean the same tensors."""
    if header.layout != layout.digest:
        raise WireError(
            f"tensors of layout {header.layout}, expected {layout.digest} ({len(layout.names)} tensors, "
            f"{layout.size} values): both sides must run the same model, lora and split"
        )


def check_digest(header: BroadcastHeader | UploadHeader, *vectors: NDArray[Any]) -> None:
    """Raise WireError unless the header names these values."""
    if header.digest != vector_digest(*vectors):
        raise WireError("digest does not match the values: modified or truncated in transit")


def names_of(mask: str, layout: Layout) -> frozenset[str]:
    """The tensors of a mask in a header. Raises WireError when it is none of this layout."""
    try:
        return layout.named(mask)
    except LayoutError as error:
        raise WireError(str(error)) from None


def check_upload(header: UploadHeader, round_: int, numbers: Numbers) -> None:
    """Raise WireError unless an upload answers this round, with a believable weight and with the ``numbers``
    of its phase in its report."""
    if header.error:
        raise WireError(header.error)
    if header.round != round_:
        raise WireError(f"answers round {header.round}, this is round {round_}")
    if not 0 < header.examples <= MAX_EXAMPLES:
        raise WireError(f"claims {header.examples} examples, expected 1 to {MAX_EXAMPLES}")
    if not 0 <= header.measured <= MAX_EXAMPLES:
        raise WireError(f"was measured on {header.measured} examples, expected 0 to {MAX_EXAMPLES}")
    numbers.check(header.report, header.measured)
