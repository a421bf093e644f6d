"""Files that are written whole or not at all, and folders in which one process works at a time."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fedsa_lora.errors import FedSAError, RunError

log = logging.getLogger("flwr")
# How safetensors, tokenizers (Rust) and shutil quote the number of a system's error in their own.
_QUOTED_ERRNO = re.compile(r"os error (\d+)|Os \{ code: (\d+)|\[Errno (\d+)\]")
REMEDY = "check space and permissions and try again"
UNFINISHED = ".unfinished"  # the end of the name of a folder that is being made
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, content: bytes, durable: bool = True) -> Path:
    """Replace a file by new content, or leave it as it was. Raises RunError, for example on a full disk.

    The content is synced under a temporary name, renamed, and the folder synced. One that is not ``durable``
    is not synced, which takes milliseconds: after a power cut it may be empty. The folder must be there: a
    run directory that was deleted while its run continued must not come back with half of its files.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
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
            f"{path} cannot be written: {error.strerror or error}; its previous content is unchanged, so "
            f"{REMEDY}",
            sent="a file cannot be written: check space and permissions on its machine",
        ) from error
    return path


def overwrite(path: Path, content: bytes) -> None:
    """Write other content into the blocks that a file has already, where a full disk has none for a new one.
    Spaces before the end pad it to the size of what it replaces, so that one write does it.

    Raises OSError where there is no such file, or it has no room for that.
    """
    descriptor = os.open(path, os.O_WRONLY)
    try:
        if len(content) > room_in(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        size = os.fstat(descriptor).st_size
        os.pwrite(descriptor, content.removesuffix(b"\n").ljust(size - 1) + b"\n", 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def room_in(path: Path) -> int:
    """Bytes that a file can hold in the blocks that it has. Raises OSError where there is none."""
    found = path.stat()
    return max(found.st_size, 512 * found.st_blocks)


def out_of_space(error: BaseException) -> bool:
    """True where a full disk or quota caused an error."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in _NO_SPACE


@contextmanager
def writing(place: Path, remedy: str = REMEDY) -> Iterator[None]:
    """Raises RunError, naming the ``place``, for what the system refuses to write inside, whichever library
    writes it. Other errors pass as they are."""
    try:
        yield
    except FedSAError:
        raise
    except Exception as error:
        if fault := disk_fault(error):
            raise RunError(
                f"{place} cannot be written: {fault}; {remedy}",
                sent="a file cannot be written: check space and permissions on its machine",
            ) from error
        raise


def disk_fault(error: Exception) -> str:
    """The system's words for why it did not write, as of a full disk; empty for an error of another kind."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    quoted = _QUOTED_ERRNO.search(str(error))
    return os.strerror(int(next(filter(None, quoted.groups())))) if quoted else ""


def open_to_others(folder: Path) -> None:
    """Let others read the files below a folder as far as the umask says. Raises OSError."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``folder`` when it is whole and on disk, with files that others
    may read as far as the umask says. What a killed process left is removed, or put in place where it was
    whole. Raises RunError where something cannot be written, which leaves the folder as it was.
    """
    recover(folder)
    with (
        writing(folder, "its previous content is unchanged, so check space and permissions and try again"),
        tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", suffix=UNFINISHED, dir=folder.parent, ignore_cleanup_errors=True
        ) as place,
    ):
        new, old = Path(place) / "new", Path(place) / "old"
        new.mkdir()
        yield new
        open_to_others(new)
        sync_tree(new)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        sync(folder.parent)


def recover(folder: Path) -> None:
    """Clear up after processes that were killed while they replaced a folder."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}{re.escape(UNFINISHED)}")
    for place in [path for path in folder.parent.glob(f".*{UNFINISHED}") if name.fullmatch(path.name)]:
        # killed between two renames: the new one is whole
        if (place / "old").exists() and not folder.exists():
            (place / "new").rename(folder)
        shutil.rmtree(place, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Sync every file below a folder, and the folders: after a power cut they are whole. Raises OSError."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Return when a file or folder is on disk as it is. Raises OSError."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


def append(path: Path, text: str) -> None:
    """Add to the end of a file. Raises RunError where that cannot be done; what was there before is then as
    it was, without a part of the text."""
    try:
        append_whole(path, text)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}; earlier rows are kept, so check space and "
            "permissions"
        ) from error


def append_whole(path: Path, text: str) -> None:
    """Add a text to the end of a file, or nothing of it. Raises OSError."""
    with open(path, "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        content = text.encode()
        try:
            while content:  # a disk that fills up takes a part of it first
                content = content[file.write(content) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), before)
            raise


def sweep(folder: Path, name: str = "") -> None:
    """Remove what killed writers of a file (of any file of the folder) left behind. Harmless where there is
    no such folder, or none that can be read."""
    begin = f".{name}." if name else "."
    with suppress(OSError):
        for stale in os.listdir(folder):
            if stale.startswith(begin) and stale.endswith(".tmp"):
                (folder / stale).unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, refusal: Callable[[str], FedSAError]) -> Iterator[None]:
    """This process alone in a folder, and no other lock of this one. Raises what ``refusal`` makes of the
    words for who is there, and RunError where there is no such folder.

    The lock is on the folder itself (flock): no file can be left behind, and the system lets go of it
    when its process ends, however it does. Where a file system has no locks, that is logged and it continues.
    """
    with ExitStack() as held:
        try:
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


@contextmanager
def tensors_in(path: Path, refusal: Callable[[str], FedSAError]) -> Iterator[Any]:
    """A safetensors file, open for NumPy. Raises what ``refusal`` makes of the reason where it, or what is
    read of it meanwhile, is cut off or altered."""
    try:
        with safe_open(path, "numpy") as file:
            yield file
    # TypeError: a dtype that NumPy lacks; KeyError and ValueError: tensors or words that are not there
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise refusal(str(error)) from None


class Held:
    """A folder that is known again: another that stands at its path later is not the same. It is held open
    meanwhile, as its inode could be given to the other otherwise.

    Raises RunError where there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            self._descriptor = os.open(path, os.O_RDONLY)

    def in_place(self) -> bool:
        """True while it is still at its path."""
        try:
            found, own = self.path.stat(), os.fstat(self._descriptor)
        except OSError:
            return False
        return os.path.samestat(found, own)

    def close(self) -> None:
        """Let it go. Harmless when called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _holder(folder: Path) -> str:
    """Names the process that has a folder locked, where the system shows it."""
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
