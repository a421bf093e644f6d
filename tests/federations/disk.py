"""Writes of this process below a folder, counted, and stopped where a test says so: a disk that is full from
one write on, a process that is killed at one."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WRITES = os.O_CREAT  # a file that is only overwritten where it is takes no space
_watched: list[Watched] = []


class Watched:
    """Shows ``act`` each write below a folder before it is done, as the last of all that were seen: the path
    of a file that is opened to be written, of a folder that is made, or of a new name."""

    def __init__(self, folder: Path, act: Callable[[list[Path]], None]) -> None:
        self.folder, self.act = folder, act
        self.seen: list[Path] = []

    def note(self, path: object) -> None:
        place = Path(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else None
        if place is not None and place.is_absolute() and place.is_relative_to(self.folder):
            self.seen.append(place)
            self.act(self.seen)


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    for watched in _watched:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if opened or (event == "os.mkdir" and not os.path.exists(str(arguments[0]))):
            watched.note(arguments[0])
        elif event in ("os.rename", "os.link"):
            watched.note(arguments[1])


sys.addaudithook(_audit)  # which cannot be taken off: it does nothing while nothing is watched


@contextmanager
def watching(folder: Path, act: Callable[[list[Path]], None] = lambda seen: None) -> Iterator[Watched]:
    """Watch the writes of this process below a folder."""
    watched = Watched(folder, act)
    _watched.append(watched)
    try:
        yield watched
    finally:
        _watched.remove(watched)


def full(first: int, last: int | None = None) -> Callable[[list[Path]], None]:
    """No space is left at the ``first`` write, and until the ``last``; for good without."""

    def act(seen: list[Path]) -> None:
        if len(seen) >= first and (last is None or len(seen) <= last):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(seen[-1]))

    return act


def killed_at(number: int) -> Callable[[list[Path]], None]:
    """kill -9 of this process when it is about to do a write of a number."""

    def act(seen: list[Path]) -> None:
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def killed(name: str, after: str = "") -> Callable[[list[Path]], None]:
    """kill -9 of this process when it is about to write something of a name, where something of another name
    was written before."""

    def act(seen: list[Path]) -> None:
        if seen[-1].name == name and (not after or after in {path.name for path in seen}):
            os.kill(os.getpid(), signal.SIGKILL)

    return act
