"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedsa_lora.errors import RunError


def write_atomically(path: Path, content: bytes, durable: bool = True) -> Path:
    """Replace a file by new content, or leave it as it was. Raises RunError, for example on a full disk.

    The content is synced under a temporary name, renamed, and the folder synced. One that is not ``durable``
    is not synced, which takes milliseconds: after a power cut it may be empty.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            with _opened(path.parent) as folder:
                os.fsync(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}; what was there before is unchanged, so "
            "check space and permissions and try again"
        ) from error
    return path


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what killed writers of a file (of any file of the folder) left behind."""
    for stale in folder.glob(f".{name}.*.tmp"):
        stale.unlink(missing_ok=True)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
