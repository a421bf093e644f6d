"""What a run config that somebody else wrote may have of this machine.

In a deployment whoever starts a run writes its config, and every SuperNode composes it. The machine's own
node config says which folders such a config may name; of its environment it learns nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from fedsa_lora.tasks.backbone import PACKAGE_SCHEME

_REFERENCE = re.compile(r"\$\{[\w.]*\}")  # to another key of the config


def foreign_words(words: Iterable[str]) -> Iterator[str]:
    """A fault for each override that would be resolved from this machine, such as ``${oc.env:HOME}``, or that
    steers Hydra."""
    for word in words:
        if "${" in _REFERENCE.sub("", word) or word.lstrip("+~").startswith("hydra"):
            yield f"{word!r}: is not allowed in a run from outside; expected plain values and ${{keys}}"


def foreign_paths(paths: Iterable[tuple[str, str, str]], folders: Sequence[Path]) -> Iterator[str]:
    """A fault for each (section, key, value) that names a file or folder outside of ``folders``. A name that
    is no path here, such as a hub id or a shipped data set, is none, nor is a folder of a package."""
    for section, key, value in paths:
        if not _is_inside(value, folders):
            yield (
                f"{section}.{key}: {value!r} is not allowed on this machine; expected a name, or what lies "
                "in a folder that its node config allows (paths=FOLDER:FOLDER)"
            )


def _is_inside(value: str, folders: Sequence[Path]) -> bool:
    if value.startswith(PACKAGE_SCHEME):
        return ".." not in PurePosixPath(value).parts
    path = Path(value)
    if not path.is_absolute() and not value.startswith("~"):
        return not path.exists()
    return any(path.resolve().is_relative_to(folder) for folder in folders)
