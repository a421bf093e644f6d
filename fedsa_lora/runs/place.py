"""The place of a new run: named, refused where it is used, and made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from fedsa_lora.errors import RunError
from fedsa_lora.runs.reading import holds_run


def new_run_dir(name: str, base: Path = Path("runs")) -> Path:
    """A fresh directory name by time; a second run of the same second gets a number."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    candidates = [base / f"{name}-{stamp}", *(base / f"{name}-{stamp}-{i}" for i in range(2, 1000))]
    return next(path for path in candidates if not path.exists()).resolve()


def refuse_used(path: Path) -> None:
    """Raise RunError when a directory already holds a run, or is no directory."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file: choose another run.dir")
    if holds_run(path):
        raise RunError(f"{path} already holds a run: choose another run.dir, or move that one away")


def refuse_unusable(path: Path) -> None:
    """Raise RunError as ``refuse_used`` does, and where no directory can be made. One is made and removed at
    once to find out: permissions alone do not show it."""
    with _made(path):
        refuse_used(path)
        there = next(place for place in (path, *path.parents) if place.exists())
        with TemporaryDirectory(dir=there):
            pass


def make(path: Path) -> None:
    """The directory of a new run. Raises RunError where there can be none."""
    with _made(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """Raise RunError for what the system says where a directory is made."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be made: {error.strerror}; check space and permissions, or choose another run.dir"
        ) from error
