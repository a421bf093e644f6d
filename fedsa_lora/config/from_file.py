"""A whole config file, such as the ``config.yaml`` of a run directory, as the fewest overrides that make it.

A run is known by its overrides: they are recorded, handed to nodes and resumed with. So a file becomes
overrides, and nothing depends on its being there later.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedsa_lora.config.changes import named, task_title, with_experiment
from fedsa_lora.config.compose import NONE_CHOSEN, composed, read_settings, rename
from fedsa_lora.config.composition import Unusual, composed_option
from fedsa_lora.config.options import CONF, Options, defaults
from fedsa_lora.config.paths import quoted
from fedsa_lora.config.validation import text_keys
from fedsa_lora.errors import ConfigError
from fedsa_lora.federation import PASSED
from fedsa_lora.group import hints_of
from fedsa_lora.settings import RunConfig
from fedsa_lora.suggest import listing

_ENDS = (".yaml", ".yml")
_OF_THE_RUN = ("dir", "store", "resume", "allow_changed_data")  # places and moments of the run in the file
_PLAIN = re.compile(r"[A-Za-z][\w./-]*")
_NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off", "inf", "nan"}


def overrides_of(
    words: Sequence[str], without: Collection[str] = (), reset: Collection[str] = ()
) -> list[str]:
    """The overrides of a command: those of a config file that it names first, with the others after them; or
    its own, with the quickstart where they ask for nothing else.

    Of a file, groups in ``reset`` are as where none is chosen, for others to choose after it; no override
    sets groups and keys that it is taken ``without``. Raises ConfigError.
    """
    if runs := [word for word in words if "=" not in word and Path(word, "config.yaml").is_file()]:
        raise ConfigError(f"{runs[0]} is a folder; expected its config file: {Path(runs[0], 'config.yaml')}")
    if not (files := [word for word in words if "=" not in word and word.endswith(_ENDS)]):
        return with_experiment(words)
    if len(files) > 1 or words[0] != files[0]:
        raise ConfigError(f"{files[-1]}: expected one config file, and overrides after it")
    path, changes = Path(files[0]).expanduser(), words[1:]
    if named_too := [word for word in changes if named(word) in NONE_CHOSEN]:
        raise ConfigError(f"{named_too[0]} sets what {path} sets as well: leave out one of the two")
    return _FromFile(path, Options.here()).words(changes, without, {*without, *reset})


class _FromFile:
    """The settings of a file, ``node``, and what the files of each group say: by group and option, content by
    its place in a config."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self.options, self.node = path, options, _settings(path)
        self.defaults = {group: str(name) for group, name in defaults().items() if group not in NONE_CHOSEN}
        stamp = options.stamp()
        self.placed = {group: _placed(group, options, stamp) for group in self.defaults}
        self._untitle()

    def words(self, changes: Sequence[str], without: Collection[str], reset: Collection[str]) -> list[str]:
        """The fewest overrides that make the file, with the files of groups that ``changes`` choose, and the
        other changes after them. Raises ConfigError where there are none."""
        chosen = [word for word in changes if self._chooses(word) and named(word) not in reset]
        default = [f"{group}={name}" for group, name in self.defaults.items() if group in reset]
        self._choose([*default, *chosen])
        words = min([w for w in (self._of_experiment(), self._of_groups()) if w], key=len)
        made = composed(words, self.options, [])
        if fault := next(_differences(made, self.node), None):
            raise ConfigError(
                f"{self.path}: no override can set {fault[0]} to its value in this file; "
                f"change it in the file"
            )
        kept = [word for word in words if named(word) not in without]
        return [*kept, *(word for word in changes if word not in chosen)]

    def _untitle(self) -> None:
        """Leave out a title, or the part of one, that every run is given by its settings."""
        node, name = self.node, self._nearest(self.node, "task")
        node["title"] = str(node["title"] or "").removesuffix(f". {PASSED}") or None
        own = (task_title([f"task={name}"], node), task_title([f"task={name}", "task.dataset=own"], node))
        if node["title"] in own:
            node["title"] = None

    def _chooses(self, word: str) -> bool:
        """True for an override that chooses another file of a group."""
        group, _, name = word.partition("=")
        return group in self.placed and name in self.options.of(group)

    def _choose(self, words: Sequence[str]) -> None:
        """Let files of groups stand in the place of all that the config had of these groups."""
        made = composed(words, self.options, []) if words else {}
        for word in words:
            group, _, name = word.partition("=")
            placed = self.placed[group]
            for place in placed.get(name, placed[self.defaults[group]]):  # left out: where the default is
                first, _, key = place.partition(".")
                section = self.node[first] if key else self.node
                if isinstance(section, dict):
                    section[key or first] = _at(made, place)

    def _of_experiment(self) -> list[str]:
        """Overrides upon the experiment that the config is called after; none where there is no such."""
        for name in self.options.experiments_called(self.node["name"]):
            faults: list[str] = []
            made = composed([f"experiment={name}"], self.options, faults)
            if not faults:
                nearest = {group: self._nearest(self.node, group) for group in self.defaults}
                other = {g: n for g, n in nearest.items() if self._is_nearer(g, n, self._nearest(made, g))}
                return self._with_values([f"experiment={name}", *(f"{g}={n}" for g, n in other.items())])
        return []

    def _of_groups(self) -> list[str]:
        """Overrides upon the files of groups that are nearest to the config. The task stands among them
        always, or the command would be one of the quickstart."""
        nearest = {group: self._nearest(self.node, group) for group in self.defaults}
        other = {g: n for g, n in nearest.items() if g == "task" or n != self.defaults[g]}
        return self._with_values([f"{group}={name}" for group, name in other.items()])

    def _with_values(self, words: list[str]) -> list[str]:
        """Overrides that choose files, and those that set what the config has otherwise."""
        leaves = _leaves(composed(words, self.options, []), self.node)
        return [*words, *(f"{key}={_value(value)}" if there else f"~{key}" for key, value, there in leaves)]

    def _nearest(self, node: Mapping[str, Any], group: str) -> str:
        """The option of a group that is nearest to a config. The default counts as nearest unless it differs
        in twice as many settings: half of another option is no use of it. A task has no such default."""
        default = self.defaults[group]
        distances = {name: self._distance(node, group, name) for name in self.placed[group]}
        found = min(sorted(distances, key=lambda name: name != default), key=distances.__getitem__)
        is_enough = default in distances and distances[default] < 2 * distances[found]
        return default if is_enough and group != "task" else found

    def _is_nearer(self, group: str, name: str, other: str) -> bool:
        return self._distance(self.node, group, name) < self._distance(self.node, group, other)

    def _distance(self, node: Mapping[str, Any], group: str, name: str) -> int:
        """The number of settings in which a config is not what an option of a group says."""
        placed = self.placed[group][name].items()
        return sum(len(list(_leaves({"": content}, {"": _at(node, place)}))) for place, content in placed)


def _settings(path: Path) -> dict[str, Any]:
    """All settings of a file. Raises ConfigError where it lacks some."""
    if not path.is_file():
        raise ConfigError(f"no config file at {str(path)!r}; expected one such as runs/NAME/config.yaml")
    node = text_keys(read_settings(path, resolve=True))
    rename(node)
    missing = [key for key in hints_of(RunConfig) if key not in {*node, "resolved"}]
    if "defaults" in node or missing:
        lacks = "chooses from other files" if "defaults" in node else f"lacks {listing(missing)}"
        raise ConfigError(
            f"{path} {lacks}: expected every setting, as in the config.yaml of a run directory; a file "
            f"that changes some of them is an experiment: save it as conf/experiment/NAME.yaml here, and "
            f"use experiment=NAME"
        )
    run = composed([], Options(), [])["run"]
    if isinstance(node["run"], dict):
        node["run"] |= {key: run[key] for key in _OF_THE_RUN}
    settings: dict[str, Any] = node
    return settings


def _leaves(made: Mapping[str, Any], node: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Differences with mappings taken apart, which no override sets as a whole."""
    for key, value, is_there in _differences(made, node):
        if is_there and isinstance(value, Mapping) and value:
            yield from ((f"{key}.{rest}", leaf, there) for rest, leaf, there in _leaves({}, value))
        else:
            yield key, value, is_there


def _differences(
    made: Mapping[str, Any], node: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, Any, bool]]:
    """Key, value and presence in ``node`` of what is not the same in ``made``."""
    for key, value in node.items():
        old = made.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and value and old:
            yield from _differences(old, value, f"{above}{key}.")
        elif key not in made or old != value or type(old) is not type(value):
            yield f"{above}{key}", value, True
    yield from ((f"{above}{key}", None, False) for key in made if key not in node)


def _at(node: Mapping[str, Any], place: str) -> Any:
    first, _, key = place.partition(".")
    section = node.get(first)
    return (section.get(key) if isinstance(section, Mapping) else None) if key else section


@lru_cache(maxsize=64)
def _placed(group: str, options: Options, stamp: object) -> dict[str, dict[str, Any]]:
    """By option of a group, as its files are at their ``stamp``, content by place in a config: one place, but
    for files that set keys of another group, or of none. Not to be changed. An option that is broken, or that
    only Hydra composes, is left out: a config that has its settings sets each of them alone."""
    found = {}
    for name in options.of(group):
        with suppress(Unusual, RecursionError):  # the latter of a file that begins with itself
            settings = composed_option(group, name, (CONF, *options.further))
            found[name] = dict(_places(text_keys(settings), group))
    return found


def _places(settings: Mapping[str, Any], group: str) -> Iterator[tuple[str, Any]]:
    for key, content in settings.items():
        if key != group and isinstance(content, Mapping):
            yield from ((f"{key}.{inner}", value) for inner, value in content.items())
        else:
            yield key, content


def _value(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {_value(inner)}' for key, inner in value.items())}}}"
    if value is None or isinstance(value, bool):
        return str({None: "null", True: "true", False: "false"}[value])
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.casefold() not in _NOT_TEXT
        return value if plain else quoted(value)
    return repr(value)
