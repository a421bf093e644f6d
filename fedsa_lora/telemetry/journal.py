"""Structured logs: one JSON object a line, with client, round and phase, on either side of the wire.

What the app records and what Flower logs end in the same file. Writing to it never ends a round: a log that
cannot be written is reported once on stderr.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fedsa_lora.errors import printable
from fedsa_lora.files import append_whole

FIELDS = ("side", "client", "round", "phase", "event", "seconds", "bytes")
MAX_BYTES, OLDER = 5_000_000, 3  # of a file; full ones kept beside it. A deployed client runs for months
MAX_MESSAGE = 20_000  # characters of a message, so that none pushes all others out of the files
SERVER_LOG, CLIENT_LOG = "logs/server.jsonl", "log.jsonl"  # in a run directory; in a client's own folder


def _made_printable(record: logging.LogRecord) -> bool:
    """Keeps what an error or a message quotes of others from commanding the terminal that it is shown on."""
    try:
        text = record.getMessage()
    except (TypeError, ValueError, KeyError):  # a wrong call, which logging reports where it writes
        return True
    if (plain := printable(text, "\n\t")) != text:
        record.msg, record.args = plain, ()
    if record.exc_info:
        record.exc_text = printable(_FORMATTER.formatException(record.exc_info), "\n\t")
    return True


_FORMATTER = logging.Formatter()
log = logging.getLogger("fedsa_lora")
log.addHandler(logging.NullHandler())
log.setLevel(logging.INFO)
log.propagate = False
_flower = logging.getLogger("flwr")  # is shown; the app's own goes to files of JSON alone, which escapes
_flower.addFilter(_made_printable)
_about: ContextVar[dict[str, Any]] = ContextVar("about", default={})  # noqa: B039 (it is replaced, never changed)


def record(event: str, message: str = "", level: int = logging.INFO, **fields: Any) -> None:
    """Write one event down; ``fields`` are of FIELDS and go before those of the context."""
    log.log(level, "%s", message, extra={"event": event, **fields})


def record_error(event: str, message: str, **fields: Any) -> None:
    """Write down the exception that is being handled, with its traceback."""
    log.error("%s", message, exc_info=True, extra={"event": event, **fields})


def current() -> dict[str, Any]:
    """The known ones of FIELDS, by name, of what is being logged at the moment."""
    return dict(_about.get())


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Marks what is logged inside with its side, client, round or phase."""
    token = _about.set(_about.get() | fields)
    try:
        yield
    finally:
        _about.reset(token)


@contextmanager
def journal(path: Path, side: Literal["server", "client"], client: str | None = None) -> Iterator[None]:
    """While it lasts, what this side logs (of a client: what it logs itself) goes to a file as well."""
    handler = _Journal(path, side, client)
    loggers = (log, _flower)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with about(side=side, client=client):
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def show_printable(library: str) -> None:
    """Make what a library shows of its log printable, such as words of a model's config that it warns of."""
    for handler in logging.getLogger(library).handlers:
        handler.addFilter(_made_printable)


class _JsonLine(logging.Formatter):
    """A log record as one line of JSON; what is not known of it is null."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        context = _about.get()
        row: dict[str, Any] = {"time": moment, "level": record.levelname}
        row |= {name: getattr(record, name, context.get(name)) for name in FIELDS}
        row["message"] = record.getMessage().strip()[:MAX_MESSAGE]
        if record.exc_info:
            row["traceback"] = (record.exc_text or self.formatException(record.exc_info))[-MAX_MESSAGE:]
        return json.dumps(row, default=str)


class _Journal(logging.Handler):
    """A bounded file of one side. Server and clients may share a process, and do in tests and sweeps: each
    file takes its own side's records. A thread without a context is Flower's, on the server's side."""

    def __init__(self, path: Path, side: str, client: str | None) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(_JsonLine())
        self.addFilter(self._is_ours)
        self._path, self._side, self._client, self._told = path, side, client, False
        self._file: BinaryIO | None = None  # open from the first line on: no other file gets its inode

    def _is_ours(self, record: logging.LogRecord) -> bool:
        context = _about.get()
        ours = context.get("side", "server") == self._side and context.get("client") == self._client
        return ours and (hasattr(record, "event") or bool(record.getMessage().strip()))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._file is not None and not self._in_place():
                return  # it was deleted or replaced, and what is there now is another run's
            append_bounded(self._path, self.format(record))
            if not self._in_place():  # the first line, or the first after a full file was put aside
                self._hold()
        except Exception:  # whatever it is, it ends no round
            self.handleError(record)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _hold(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._path.open("rb")

    def _in_place(self) -> bool:
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._told:
            self._told = True
            print(f"{self._path} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


def append_bounded(path: Path, line: str) -> None:
    """Add a line to a file; a full one becomes the first of ``OLDER`` that are kept beside it. Makes its
    folder and no more: a deleted run stays deleted. Raises OSError where it cannot be written."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        path.parent.mkdir(exist_ok=True)
        size = 0
    if size and size + len(line) >= MAX_BYTES:
        for number in range(OLDER, 1, -1):
            newer = path.with_name(f"{path.name}.{number - 1}")
            if newer.exists():
                newer.replace(path.with_name(f"{path.name}.{number}"))
        path.replace(path.with_name(f"{path.name}.1"))
    append_whole(path, f"{line}\n")
