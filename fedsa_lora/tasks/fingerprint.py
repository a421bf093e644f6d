"""Digests of the rows that a run uses, by which it is seen later whether they changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fedsa_lora.tasks.partition import ClientRows
from fedsa_lora.tasks.rows import LabelledData, Rows

CLASSES = "classes"


@dataclass(frozen=True)
class Part:
    """Number of values, and a digest of them in their order."""

    count: int
    digest: str


@dataclass(frozen=True)
class Fingerprint:
    """Of the data at ``source``: what is in each part of them, by the name of the part."""

    source: str
    parts: dict[str, Part]

    @property
    def digest(self) -> str:
        """Of all parts together."""
        return _digest([name, part.digest] for name, part in sorted(self.parts.items()))

    def differences(self, now: Fingerprint) -> list[str]:
        """One line for each part that is another now."""
        names = dict.fromkeys([*self.parts, *now.parts])
        return [
            f"{name}: then {_told(self.parts.get(name))}, now {_told(now.parts.get(name))}"
            for name in names
            if self.parts.get(name) != now.parts.get(name)
        ]


@runtime_checkable
class Fingerprinted(Protocol):
    """A task that knows its rows; one that does not works as well, but nobody sees when its data change."""

    def fingerprint(self) -> Fingerprint:
        """Of the rows as the run uses them."""
        ...


def fingerprint_of(task: object) -> Fingerprint | None:
    """Fingerprint of a task's data, if anything is known of them."""
    return task.fingerprint() if isinstance(task, Fingerprinted) else None


def of_rows(data: LabelledData) -> dict[str, Part]:
    """Train rows, test rows where there are any, and the names of the classes.

    Made of values and not of files: the same rows have the same digest, whatever reads them.
    """
    parts = {"train rows": _rows(data.train)}
    if data.test is not None:
        parts["test rows"] = _rows(data.test)
    return parts | {CLASSES: of_classes(data.classes)}


def of_classes(classes: tuple[str, ...]) -> Part:
    """The class names in the order of the model's outputs."""
    return Part(len(classes), _digest([list(classes)]))


def of_clients(clients: dict[str, ClientRows]) -> Part:
    """Digest of each client's rows by part."""
    held = (
        [name, rows.train.tolist(), rows.validation.tolist(), rows.test.tolist()]
        for name, rows in sorted(clients.items())
    )
    return Part(len(clients), _digest(held))


def _rows(rows: Rows) -> Part:
    inputs = rows.inputs[:]
    columns = [[name, list(inputs[name])] for name in sorted(inputs)]
    groups = None if rows.groups is None else [str(group) for group in rows.groups]
    return Part(len(rows), _digest([*columns, rows.labels.tolist(), groups]))


def _digest(values: Iterable[Any]) -> str:
    """SHA-256 of values as JSON, which no two of them share; the first 16 hex digits."""
    state = hashlib.sha256()
    for value in values:
        state.update(json.dumps(value, separators=(",", ":"), default=_plain).encode())
        state.update(b"\n")
    return state.hexdigest()[:16]


def _plain(value: Any) -> str:
    """Replaces what JSON cannot hold, such as the bytes of an image; of what has no bytes only its kind."""
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "tobytes"):
        return str(value.tobytes().hex())
    return type(value).__name__


def _told(part: Part | None) -> str:
    return "none" if part is None else f"{part.count:,} ({part.digest})"
