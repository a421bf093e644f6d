"""Limits of a run config that somebody else wrote: the words and the files that it may use here.

In a deployment whoever starts a run writes its config, and every SuperNode composes it. The machine's own
node config says which folders such a config may name; of its environment it learns nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from fedsa_lora.tasks.hub import is_hub_id
from fedsa_lora.tasks.imported import CACHE_SCHEME, IMPORTABLE
from fedsa_lora.tasks.model_settings import PACKAGE_SCHEME

_REFERENCE = re.compile(r"\$\{[\w.]*\}")  # to another key of the config
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def foreign_words(words: Iterable[str]) -> Iterator[str]:
    """A fault for each override that would be resolved from this machine, such as ``${oc.env:HOME}``, or that
    steers Hydra."""
    for word in words:
        if "${" in _REFERENCE.sub("", word) or word.strip().lstrip("+~").startswith("hydra"):
            yield f"{word!r}: is not allowed in a submitted run; expected plain values and ${{keys}}"


def foreign_paths(paths: Iterable[tuple[str, str, str]], folders: Sequence[Path]) -> Iterator[str]:
    """A fault for each (section, key, value) that is neither a hub id, an imported model nor a folder of an
    installed package, nor lies in one of ``folders`` once its links are followed, those within a folder
    included."""
    for section, key, value in paths:
        path = Path(value)
        if not _is_allowed(value, folders):
            yield (
                f"{section}.{key}: {value!r} is not allowed on this machine; expected a hub id (NAME or "
                "OWNER/NAME), or a path in a folder that its node config allows (paths=FOLDER:FOLDER)"
            )
        elif path.is_absolute() and (link := _link_out(path, folders)):
            yield (
                f"{section}.{key}: {value!r} is not allowed on this machine, as the link {str(link)!r} "
                f"points outside the folders that its node config allows; remove the link, or allow its "
                f"target"
            )


def _is_allowed(value: str, folders: Sequence[Path]) -> bool:
    if value.startswith(PACKAGE_SCHEME):
        _, _, inner = value.removeprefix(PACKAGE_SCHEME).partition("/")
        return not inner.startswith("/") and ".." not in PurePosixPath(inner).parts
    if value.startswith(CACHE_SCHEME):
        return value.removeprefix(CACHE_SCHEME) in IMPORTABLE
    path = Path(value)
    if not path.is_absolute():  # nor a home folder: "~" begins no hub id
        return is_hub_id(value) and not path.exists()
    return _is_inside(path, folders)


def _is_inside(path: Path, folders: Sequence[Path]) -> bool:
    """True for a path that lies in one of the folders once its links are followed; a circle of links leads
    nowhere."""
    try:
        place = path.resolve()
    except (OSError, RuntimeError):
        return False
    return any(place.is_relative_to(folder) for folder in folders)


def _link_out(folder: Path, folders: Sequence[Path]) -> Path | None:
    """A link within a folder that leads out of ``folders``. Folders that links lead to are searched as well;
    one that cannot be searched cannot be read either."""
    waiting, seen = [str(folder.resolve())], set()
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                if not entry.is_symlink():
                    if entry.is_dir():
                        waiting.append(entry.path)
                elif not _is_inside(path := Path(entry.path), folders):
                    return path
                elif os.path.isdir(path):  # a Path would raise for a target that cannot be looked at
                    waiting.append(str(path.resolve()))
    return None


def run_name_fault(name: str) -> str:
    """The fault of a run directory's name, by which each node names a folder; empty for one that can be
    used."""
    if _RUN.fullmatch(name):
        return ""
    return (
        f"run.dir: nodes keep a run's state in a folder of the same name, and {name!r} is not a valid "
        f"name: expected its last part to be 1 to 128 letters, digits, '.', '_' or '-', beginning with a "
        f"letter or digit"
    )
