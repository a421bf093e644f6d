"""Folders and files that a config names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsa_lora.errors import ConfigError
from fedsa_lora.group import FILES, PATHS, WRITTEN, Mark, marked
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.shipped import SHIPPED


def places(config: RunConfig) -> list[str]:
    """Overrides that name every folder and file of a config absolutely, whatever characters they have:
    the apps of a run work in a separate folder."""
    run = config.resolved["run"] | {"dir": str(config.run_dir)}
    words = []
    for section, key, value in paths(config.resolved | {"run": run}, *PATHS, FILES):
        if Path(value).is_absolute():
            words.append(assignment(f"{section}.{key}", value))
    return words


def assignment(key: str, value: str) -> str:
    """The override that gives a key this text, whatever characters it has."""
    return f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    """A text as Hydra reads it, whatever characters it has."""
    escaped = value.replace('"', '\\"')  # Hydra takes a backslash as it is, but before a quote
    return f'"{escaped}"'


def paths(node: dict[str, Any], *kinds: Mark) -> Iterator[tuple[str, str, str]]:
    """Section, key and value of everything in a config that may be a folder or a file, of some ``kinds``."""
    for place in marked(RunConfig, *kinds):
        section, key = place.rsplit(".", 1)
        settings = node.get(section)
        value = settings.get(key) if isinstance(settings, dict) else None
        if isinstance(value, str) and value:
            yield section, key, value
        elif isinstance(value, dict):
            named = [(name, path) for name, path in value.items() if isinstance(path, str)]
            yield from ((place, name, path) for name, path in named)


def make_absolute(node: dict[str, Any]) -> None:
    """Relative paths are from where the user stands. A name that is no path here, such as a hub id or
    a shipped data set, stays as it is; what a run is to write need not exist. Raises ConfigError for the home
    folder of somebody who is no user here."""
    written = {place.partition(".")[0] for place in marked(RunConfig, WRITTEN)}
    for section, key, value in list(paths(node, *PATHS, FILES)):
        try:
            path = Path(value).expanduser()
        except RuntimeError:
            raise ConfigError(
                f"{section}.{key}: {value!r} is in the home folder of an unknown user; write the full path"
            ) from None
        if value not in SHIPPED and (section in written or path.exists()):
            first, *rest = section.split(".")
            settings = node[first] if not rest else node[first][rest[0]]
            settings[key] = str(path.resolve())
