"""Named entries in a folder of this machine."""

from __future__ import annotations

import re
from pathlib import Path

from fedsa_lora.errors import ConfigError, FedSAError, RunError
from fedsa_lora.files import writing
from fedsa_lora.suggest import listing, nearest

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


def checked(name: object) -> str:
    """A name that stays within its folder. Raises ConfigError for any other."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a valid name: expected letters, digits, '.', '_' and '-', with "
            "a letter or a digit first"
        )
    return name


def made(folder: Path) -> Path:
    """Return the folder, which is made where it is not there. Raises RunError where that cannot be done."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def absent(what: str, name: str, folder: Path, known: list[str]) -> FedSAError:
    """The error for an entry that is not there."""
    there = f"there are {listing(known)}" if known else "there is none yet"
    return RunError(f"no {what} {name!r} in {folder}{nearest(name, known)}; {there}")
