"""Config files: the groups, their options, and a line about each; without Hydra, which takes long to load.

Files of the user's own lie in a folder ``conf`` of the working directory, in the order of those that are
shipped, and add options to the groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError  # type: ignore[import-untyped]

from fedsa_lora.config import yaml_text
from fedsa_lora.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent.parent
# a wheel carries conf/ inside the package, a checkout and a Flower bundle beside it
CONF = next((f for f in (PACKAGE / "conf", PACKAGE.parent / "conf") if f.is_dir()), PACKAGE / "conf")
OWN = "conf"  # folder of the working directory
NEW_EXPERIMENT = PACKAGE / "config" / "new_experiment.yaml"  # in which EXPERIMENT and NAME are replaced


@dataclass(frozen=True)
class Options:
    """Files that are shipped and those of the user: of the ``own`` folder, and of one that was ``kept`` with
    a run, in which the shipped files of another version may lie too. A shipped file is taken before another
    of its name."""

    own: Path | None = None
    kept: Path | None = None

    @classmethod
    def here(cls, kept: Path | None = None) -> Options:
        """Those of the working directory."""
        own = Path(OWN)
        found = own.resolve() if own.is_dir() else None
        return cls(
            None if found == CONF.resolve() else found, kept if kept is not None and kept.is_dir() else None
        )

    @property
    def further(self) -> list[Path]:
        """The folders beside the shipped one, in the order in which they are searched."""
        return [folder for folder in (self.own, self.kept) if folder is not None]

    def of(self, group: str) -> dict[str, Path]:
        """File by name of the options of a group."""
        found: dict[str, Path] = {}
        for folder in (CONF, *self.further):
            for path in sorted((folder / group).rglob("*.yaml")):
                found.setdefault(str(path.relative_to(folder / group).with_suffix("")), path)
        return found

    def experiments_called(self, name: str) -> Iterator[str]:
        """The experiments whose runs have this name."""
        for option, path in self.of("experiment").items():
            if content_of(path).get("name") == name:
                yield option

    def taken(self) -> list[str]:
        """A fault for each file of the user's that has the name of a shipped one with other content: one of
        the two would be taken in silence."""
        if self.own is None:
            return []
        files = [("run.yaml", self.own / "run.yaml"), *self.added()]
        return [
            f"{path}: a file of this name is shipped and takes precedence; give yours another name"
            for name, path in files
            if path.is_file() and _differs(path, CONF / name)
        ]

    def stamp(self) -> tuple[tuple[str, int], ...]:
        """Name and time of change of each file of the user's."""
        files = [path for folder in self.further for path in sorted(folder.rglob("*.yaml"))]
        return tuple((str(path), path.stat().st_mtime_ns) for path in files)

    def added(self) -> Iterator[tuple[str, Path]]:
        """The files of the ``own`` folder that are in a group, each with its place in the folder."""
        if self.own is not None:
            for group in groups():
                for path in sorted((self.own / group).rglob("*.yaml")):
                    yield str(path.relative_to(self.own)), path


def groups() -> list[str]:
    """The names of all groups, with ``experiment``, ``regime`` and ``compare``."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir())


def defaults() -> dict[str, str | None]:
    """By group, the option that a run has where none is chosen."""
    found: dict[str, str | None] = {}
    for entry in content_of(CONF / "run.yaml")["defaults"]:
        if isinstance(entry, dict):
            found |= entry
    return found


def about(path: Path) -> str:
    """The comment that a config file opens with, to the line that ends a sentence; the title of one that
    opens with a command, as experiments do."""
    opening: list[str] = []
    is_command = False
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.lstrip("# ")
        if not line.startswith("#") or (opening and opening[-1].endswith(".")):
            break
        is_command = is_command or text.startswith("fedsa-lora ")
        if not text.startswith(("@package", "fedsa-lora ")):
            opening.append(text)
    title = content_of(path).get("title") if is_command else None
    return str(title or " ".join(opening))


def content_of(path: Path) -> dict[str, Any]:
    """The settings that a config file holds. Raises ConfigError where it is no YAML."""
    try:
        content = yaml_text.parse(path.read_text(encoding="utf-8"))
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}


def _differs(path: Path, shipped: Path) -> bool:
    return shipped.is_file() and path.read_bytes() != shipped.read_bytes()
