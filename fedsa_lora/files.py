"""Files that are written whole or not at all, and folders in which one process works at a time."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fedsa_lora.errors import FedSAError, RunError

log = logging.getLogger("flwr")


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
            "check space and permissions and try again",
            sent="a file cannot be written: check space and permissions on its machine",
        ) from error
    return path


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what killed writers of a file (of any file of the folder) left behind."""
    for stale in folder.glob(f".{name}.*.tmp"):
        stale.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, refusal: Callable[[str], FedSAError]) -> Iterator[None]:
    """This process alone in a folder, and no other lock of this one. Raises what ``refusal`` makes of the
    words for who is there, and RunError where there can be no such folder.

    The lock is on the folder itself (flock): no file can be left behind, and the system lets go of it
    when its process ends, however it does. Where a file system has no locks, that is told and it goes on.
    """
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = held.enter_context(_opened(folder))
        except OSError as error:
            raise RunError(
                f"{folder} cannot be used: {error.strerror}; check its place and permissions",
                sent="a folder cannot be used: check the place and permissions of its store",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal(_holder(folder)) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): let only one run at a time use it", folder, error.strerror)
        yield


def _holder(folder: Path) -> str:
    """Who has a folder locked, where the system tells."""
    inode = f":{folder.stat().st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE process major:minor:inode 0 EOF
            if words[1] == "FLOCK" and words[-3].endswith(inode):
                return f"process {words[-4]}"
    return "another process"


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
