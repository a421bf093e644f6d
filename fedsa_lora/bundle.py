"""The messages to several clients of one node as one message, and their answers as one answer."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord, Error, RecordDict

SIZE = "clients-of-node"  # record and entry that say how many clients the node has
ERROR = "error"  # the record of an answer that is one
Part = RecordDict | Error


def pack(parts: Mapping[int, Part], size: int) -> RecordDict:
    """Joins what is for, or from, some of the ``size`` clients of a node, each by its place on the node."""
    whole = RecordDict({SIZE: ConfigRecord({SIZE: size})})
    for place, part in sorted(parts.items()):
        if isinstance(part, Error):
            part = RecordDict({ERROR: ConfigRecord({"code": part.code, "reason": part.reason or ""})})
        for name, record in part.items():
            whole[f"{place}/{name}"] = record
    return whole


def size_of(whole: RecordDict) -> int | None:
    """Number of clients of the node that a bundle is for; None of any other message."""
    if SIZE not in whole.config_records:
        return None
    size = whole.config_records[SIZE].get(SIZE)
    return size if isinstance(size, int) else None


def unpack(whole: RecordDict, size: int) -> dict[int, Part]:
    """Takes a bundle apart, by the place of each client on a node that has ``size``. Raises ValueError for
    what ``pack`` never makes."""
    if size_of(whole) != size:
        raise ValueError(f"it is not a bundle of the messages of {size} clients")
    contents: dict[int, RecordDict] = {}
    for key, record in whole.items():
        if key == SIZE:
            continue
        place, mark, name = str(key).partition("/")
        if not mark or not place.isdecimal() or str(int(place)) != place or int(place) >= size:
            raise ValueError(f"{str(key)[:40]!r} belongs to no client of a node with {size}")
        contents.setdefault(int(place), RecordDict())[name] = record
    return {place: _part(content) for place, content in contents.items()}


def _part(content: RecordDict) -> Part:
    if list(content) != [ERROR]:
        return content
    told = content.config_records.get(ERROR, ConfigRecord())
    code, reason = told.get("code"), told.get("reason")
    if not isinstance(code, int) or not isinstance(reason, str):
        raise ValueError("it has an error without code and reason")
    return Error(code, reason)
