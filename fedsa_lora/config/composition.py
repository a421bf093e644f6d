"""Composes config files as Hydra does, in a twentieth of the time, where their defaults lists are as plain as
those that are shipped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from yaml import YAMLError  # type: ignore[import-untyped]

from fedsa_lora.config import yaml_text

_CHOICE = re.compile(r"(\w+)=([A-Za-z_][\w/-]*)")
_NO_NAMES = ("null", "true", "false", "nan", "inf")  # to Hydra, in any case
_PACKAGE = re.compile(r"# @package (?:_global_|(\w+))\n")
_OVERRIDE = re.compile(r"override /(\w+)")
_INCLUDED = re.compile(r"(/?)([\w/-]+)(@_here_)?")
_SELF = "_self_"

Settings = dict[str, Any]


class Unusual(Exception):
    """Raised for what is left to Hydra: to be composed, or to be reported as a fault."""


def composed_files(words: Sequence[str], folders: Sequence[Path]) -> Settings:
    """The settings of ``run.yaml`` and of the options that words such as ``split=share_ab`` choose, each file
    from the first of the folders that has it. Interpolations are not resolved.

    Raises Unusual where only Hydra can compose the files, or report what is wrong with them.
    """
    composition = _Composition(folders, dict(map(_choice, words)))
    settings: Settings = reduce(_merge, composition.parts(composition.read("run"), "", ""), {})
    if composition.choices.keys() - composition.groups:
        raise Unusual
    return settings


def composed_option(group: str, name: str, folders: Sequence[Path]) -> Settings:
    """The settings of an option of a group by itself, at their keys in a config. Raises as the above."""
    return reduce(_merge, _Composition(folders, {}).group(group, name), {})


def _choice(word: str) -> tuple[str, str]:
    found = _CHOICE.fullmatch(word)
    if found is None or found[2].lower() in _NO_NAMES:
        raise Unusual
    return found[1], found[2]


@dataclass(frozen=True)
class _File:
    """The content of a file without its defaults list, and the package that its first line names: the key at
    which it is set, "" for the root of the config."""

    name: str
    package: str | None
    defaults: list[Any]
    content: Settings


class _Composition:
    """The options that are chosen, by words and by ``override`` in files, and the groups of ``run.yaml``."""

    def __init__(self, folders: Sequence[Path], choices: dict[str, Any]) -> None:
        self.folders, self.choices = folders, choices
        self.groups: set[str] = set()

    def parts(self, file: _File, key: str, folder: str) -> list[Settings]:
        """Parts of a file and of its defaults list, each at its key, in the order in which they are merged.
        A file without a package is set at ``key``; names in the list are of files in ``folder``."""
        found: list[list[Settings]] = []
        # As Hydra, from the last: what an experiment overrides is known before the groups are read.
        for entry in reversed(self._without_overrides(file.defaults)):
            if entry == _SELF:
                found.append([{key: file.content} if key else file.content])
            elif isinstance(entry, str):
                found.append(self._included(entry, key, folder))
            elif file.name == "run" and isinstance(entry, dict) and len(entry) == 1:
                found.append(self.group(*next(iter(entry.items()))))
            else:
                raise Unusual
        return [part for parts in reversed(found) for part in parts]

    def _without_overrides(self, defaults: list[Any]) -> list[Any]:
        """The entries that are no overrides. An override counts where none of the same group did before: that
        of the outer file, or a word."""
        kept: list[Any] = []
        overridden = False
        for entry in defaults:
            key, option = next(iter(entry.items())) if isinstance(entry, dict) and entry else ("", None)
            override = _OVERRIDE.fullmatch(str(key))
            if override is not None:
                self.choices.setdefault(override[1], option)
                overridden = True
            elif overridden and entry != _SELF:
                raise Unusual  # an error: overrides stand at the end
            else:
                kept.append(entry)
        return kept if _SELF in kept else [*kept, _SELF]

    def _included(self, entry: str, key: str, folder: str) -> list[Settings]:
        """Those of a file in the same folder, as ``default``, or elsewhere, as ``/codec/topk@_here_``."""
        found = _INCLUDED.fullmatch(entry)
        if found is None or bool(found[1]) != ("/" in found[2]):
            raise Unusual
        absolute, name, here = found.groups()
        file = self.read(name if absolute else f"{folder}/{name}")
        if file.package is None and absolute and not here:
            raise Unusual
        at = key if here or file.package is None else file.package
        return self.parts(file, at, file.name.rpartition("/")[0])

    def group(self, group: str, option: Any) -> list[Settings]:
        """Those of the option that is chosen in a group."""
        if group in self.groups:
            raise Unusual
        self.groups.add(group)
        chosen = self.choices.get(group, option)
        if chosen is None:
            return []
        file = self.read(f"{group}/{chosen}")
        return self.parts(file, group if file.package is None else file.package, group)

    def read(self, name: str) -> _File:
        """The file of a name, from the first folder that has it."""
        path = next((path for f in self.folders if (path := f / f"{name}.yaml").is_file()), None)
        if path is None:
            raise Unusual
        try:
            text = path.read_text(encoding="utf-8")
            content = yaml_text.parse(text)
        except (YAMLError, OSError, UnicodeDecodeError) as error:
            raise Unusual from error
        if not isinstance(content, dict):
            raise Unusual
        package = _PACKAGE.match(text)
        defaults = content.pop("defaults", [])
        if not isinstance(defaults, list) or text.count("@package") != (package is not None):
            raise Unusual
        return _File(name, package and (package[1] or ""), defaults, content)


def _merge(into: Settings, settings: Settings) -> Settings:
    """Merge as OmegaConf does, in place. Raises Unusual where it would resolve an interpolation or refuse."""
    for key, value in settings.items():
        before = into.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            _merge(before, value)
        elif isinstance(before, dict | list) and (isinstance(value, dict | list) or value == "???"):
            if not (isinstance(before, list) and isinstance(value, list)):
                raise Unusual
            into[key] = value
        elif isinstance(before, str) and "${" in before and isinstance(value, dict):
            raise Unusual
        else:
            into[key] = value
    return into
