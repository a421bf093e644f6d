"""What a run config that somebody else wrote may have of this machine.

In a deployment whoever starts a run writes its config, and every SuperNode composes it. The machine's own
node config says which folders such a config may name; of its environment it learns nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from fedsa_lora.tasks.backbone import PACKAGE_SCHEME
from fedsa_lora.tasks.hub import is_hub_id

_REFERENCE = re.compile(r"\$\{[\w.]*\}")  # to another key of the config
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def foreign_words(words: Iterable[str]) -> Iterator[str]:
    """A fault for each override that would be resolved from this machine, such as ``${oc.env:HOME}``, or that
    steers Hydra."""
    for word in words:
        if "${" in _REFERENCE.sub("", word) or word.strip().lstrip("+~").startswith("hydra"):
            yield f"{word!r}: is not allowed in a run from outside; expected plain values and ${{keys}}"


def foreign_paths(paths: Iterable[tuple[str, str, str]], folders: Sequence[Path]) -> Iterator[str]:
    """A fault for each (section, key, value) that is neither a hub id, nor a folder of an installed package,
    nor lies in one of ``folders`` once its links are followed."""
    for section, key, value in paths:
        if not _is_inside(value, folders):
            yield (
                f"{section}.{key}: {value!r} is not allowed on this machine; expected a hub id (NAME or "
                "OWNER/NAME), or what lies in a folder that its node config allows (paths=FOLDER:FOLDER)"
            )


def _is_inside(value: str, folders: Sequence[Path]) -> bool:
    if value.startswith(PACKAGE_SCHEME):
        _, _, inner = value.removeprefix(PACKAGE_SCHEME).partition("/")
        return not inner.startswith("/") and ".." not in PurePosixPath(inner).parts
    path = Path(value)
    if not path.is_absolute():  # nor a home folder: "~" begins no hub id
        return is_hub_id(value) and not path.exists()
    return any(path.resolve().is_relative_to(folder) for folder in folders)


def run_name_fault(name: str) -> str:
    """The fault of a run directory's name, by which each node names a folder; empty for one that can be
    used."""
    if _RUN.fullmatch(name):
        return ""
    return (
        f"run.dir: nodes keep a run's state in a folder of the same name, and {name!r} is none: expected its "
        "last part to be 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
    )
