"""The typed configuration of a run. The only file that knows Hydra."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fedsa_lora.binding import TARGET, raise_faults, unknown
from fedsa_lora.config import yaml_text
from fedsa_lora.config.changes import task_title
from fedsa_lora.config.composition import Unusual, composed_files
from fedsa_lora.config.options import CONF, Options
from fedsa_lora.config.outside import foreign_paths, foreign_words
from fedsa_lora.config.paths import assignment, make_absolute, paths, quoted
from fedsa_lora.config.validation import from_resolved
from fedsa_lora.errors import ConfigError
from fedsa_lora.federation import PASSED
from fedsa_lora.foreign import ours_of_option
from fedsa_lora.group import FILES, PATHS, READ, TEXT, hints_of, marked
from fedsa_lora.settings import LATER, RunConfig

NONE_CHOSEN = ("experiment", "regime")  # groups of which none need be chosen


def load(
    overrides: Sequence[str] | str = (),
    default_dir: str | None = None,
    folders: Sequence[Path] | None = None,
    kept: Path | None = None,
) -> RunConfig:
    """Compose, resolve and bind. ``overrides`` in Hydra's syntax, as a list or one shell-like string.

    ``default_dir`` is the run directory when none is configured. With ``folders`` the overrides are from
    outside: data and models are read from these alone, see ``fedsa_lora.config.outside``, and config files
    are those of the run's app. ``kept``: a folder of config files that a run took along. Raises ConfigError
    listing every unknown key, wrong type, value out of range and contradiction at once.
    """
    try:
        words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    except ValueError as error:
        raise ConfigError(f"overrides {overrides!r}: {error}; close every quote") from None
    options = Options.here(kept) if folders is None else Options()
    faults = options.taken()
    if folders is not None:
        foreign = list(foreign_words(words))
        raise_faults(foreign, sent="its config reads environment variables of the node, or configures Hydra")
    node = composed(words, options, faults)
    if default_dir is not None and isinstance(node.get("run"), dict) and not node["run"].get("dir"):
        node["run"]["dir"] = default_dir
    if folders is not None:  # before anything is read: what a fault quotes of a file would travel
        foreign = list(foreign_paths(paths(node, READ, FILES), folders))
        raise_faults(foreign, sent="its config names data or a model that this node does not allow")
    make_absolute(node)
    if node.get("title") is None:
        node["title"] = task_title(words, node)
    if isinstance(node.get("federation"), dict) and node["federation"].get("b_passing") is True:
        node["title"] += f". {PASSED}"
    return from_resolved(node, faults)


def composed(words: Sequence[str], options: Options, faults: list[str]) -> dict[str, Any]:
    """The resolved settings that overrides make of the files, not yet bound. Raises ConfigError with all
    ``faults`` where there are none; adds those of overrides that were left out."""
    composable = _composable(words, options, faults)
    try:
        return _composed(composable, options, faults)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, RecursionError) as error:
        faults.append(" ".join(str(error).split()))
        raise_faults(faults)
        raise


def _composed(
    overrides: Sequence[tuple[str, Override]], options: Options, faults: list[str]
) -> dict[str, Any]:
    """The resolved settings of the files and of overrides, each with its text. Hydra takes long to find and
    merge files, and sets values last: files are composed once for each choice of them, and values are set in
    a copy, as Hydra does. Raises what Hydra raises.

    Words of an experiment's own, such as ``forget_split``, are gone once other keys are made of them. One
    that the user must give, ``???``, and does not is a fault.
    """
    whole = {override.key_or_group: override.value() for _, override in overrides if _names_class(override)}
    overrides = [(text, override) for text, override in overrides if not _names_class(override)]
    others = [(text, override) for text, override in overrides if not _is_assignment(text, override)]
    chosen, stamp = tuple(text for text, _ in others), options.stamp()
    if any(text[0] in "+~" or isinstance(override.value(), dict) for text, override in others):
        texts = tuple(text for text, _ in overrides)  # values as well: the order counts
        config = deepcopy(_of_files(texts, options, stamp))
        _replace_groups(config, whole)
    else:
        config = deepcopy(_of_files(chosen, options, stamp))
        _replace_groups(config, whole)
        for text, override in overrides:
            if _is_assignment(text, override):
                _assign(config, text, override)
    files = tuple(text for text, override in overrides if (CONF / override.key_or_group).is_dir())
    words = {str(key) for key in _of_files(files, options, stamp)} - hints_of(RunConfig).keys()
    for word in sorted(words):
        if OmegaConf.is_missing(config, word):
            faults.append(f"{word}: missing; this experiment needs it: {word}=NAME")
            config[word] = "missing"
    node = OmegaConf.to_container(config, resolve=True)
    assert isinstance(node, dict)
    node |= dict.fromkeys(_left_out(overrides))
    return {str(key): value for key, value in node.items() if key not in words}


def _left_out(overrides: Sequence[tuple[str, Override]]) -> set[str]:
    """Groups of which a word chooses to have nothing, as ``lora=none`` does: an experiment may set some of
    their keys, and Hydra would make a group of these alone. Raises ConfigError where a word sets one."""
    chosen = {override.key_or_group: override.value() for _, override in overrides}
    files = {group: CONF / group / "none.yaml" for group, value in chosen.items() if value == "none"}
    there = {group: file for group, file in files.items() if file.is_file()}
    contents = {group: OmegaConf.to_container(OmegaConf.load(file)) for group, file in there.items()}
    empty = {group for group, content in contents.items() if content == {group: None}}
    if left := sorted(key for key in chosen if key.partition(".")[0] in empty and "." in key):
        group = left[0].partition(".")[0]
        raise ConfigError(f"{group}=none leaves the group out, and {left[0]} sets a key of it: remove one")
    return empty


def _assign(config: DictConfig, text: str, override: Override) -> None:
    try:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException(f"Error merging override {text}") from error


def _names_class(override: Override) -> bool:
    """True where a word gives a group whole, by the class that it is to be: nothing is left of its file."""
    value = override.value()
    return isinstance(value, dict) and TARGET in value and (CONF / override.key_or_group).is_dir()


def _replace_groups(config: DictConfig, whole: Mapping[str, Any]) -> None:
    for group, settings in whole.items():
        OmegaConf.update(config, group, settings, merge=False, force_add=True)


def _is_assignment(text: str, override: Override) -> bool:
    """A value for a key of the config that is neither a group nor Hydra's own."""
    key = override.key_or_group
    ours = key.partition(".")[0] != "hydra" and not (CONF / key).is_dir()
    return text.startswith("++") and override.package is None and ours


@lru_cache(maxsize=32)
def _of_files(words: tuple[str, ...], options: Options, stamp: object) -> DictConfig:
    """Composes the files that are chosen, as they are at their ``stamp``; not to be changed."""
    try:
        return OmegaConf.create(composed_files(words, (CONF, *options.further)))
    except Unusual:
        return _of_hydra(words, options)


def _of_hydra(words: Sequence[str], options: Options) -> DictConfig:
    further = [quoted(f"file://{folder}") for folder in options.further]
    search = [f"hydra.searchpath=[{','.join(further)}]"] if further else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", overrides=[*words, *search])


def _composable(words: Sequence[str], options: Options, faults: list[str]) -> list[tuple[str, Override]]:
    """Overrides that Hydra can always compose, each with its text: keys it does not know are added, for
    ``bind`` to name."""
    kept = []
    for word in words:
        if "\0" in word:
            faults.append(f"{word!r}: holds a NUL; remove it")
            continue
        try:
            override = _parsed(word)
        except HydraException as error:
            faults.append(
                f"{word!r}: not an override; expected key=value, with signs such as ( or = between "
                f"quotation marks ({' '.join(str(error).split())})"
            )
            continue
        if override.is_sweep_override():
            faults.append(f"{word!r}: a sweep; expected one value (a list is written key=[a,b])")
        elif not (CONF / override.key_or_group).is_dir():
            text = override.input_line or word
            kept.append((text if text[0] in "+~" else f"++{text}", override))
        elif _is_option(override, options, faults):
            kept.append((word, override))
    return kept


def _parsed(word: str) -> Override:
    """An override. A path, or the name of a column, is taken as it is where Hydra reads no one value in it,
    as in ``my tickets (1).csv``. Raises HydraException for what is no override."""
    parser = OverridesParser.create()
    key, sign, value = word.partition("=")
    try:
        override = parser.parse_override(word)
        if not override.is_sweep_override() or not _is_text(key):
            return override
    except HydraException:
        if not sign or not _is_text(key):
            raise
    return parser.parse_override(assignment(key, value))


def _is_text(key: str) -> bool:
    """True for a key that holds a path or a name, with whatever characters it has."""
    name = key.lstrip("+")
    return name in marked(RunConfig, TEXT, *PATHS) or name.rpartition(".")[0] in marked(RunConfig, FILES)


def _is_option(override: Override, known: Options, faults: list[str]) -> bool:
    """True where Hydra can set a group so; adds a fault where it is none of the group's files."""
    group, value = override.key_or_group, override.value()
    options = list(known.of(group))
    if isinstance(value, dict) or value in options:
        return True
    if value is not None or group not in NONE_CHOSEN:
        shown = "null" if value is None else value
        words = ours_of_option(group, shown)
        foreign = f"{group}={shown}: no such option; {words}"
        faults.append(foreign if words else unknown(f"{group}={shown}", "option", options, shown))
    return False


def read_config(run_dir: Path) -> RunConfig:
    """The config of a run directory, wherever it was moved to. Raises ConfigError when there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.yaml")
    node = read_settings(path)
    if isinstance(node.get("run"), dict):
        node["run"]["dir"] = str(run_dir.resolve())
    rename(node)
    return from_resolved(node)


def rename(node: dict[str, Any]) -> None:
    """Give the settings of runs that were recorded before some names and groups those of today."""
    for group, absent in LATER.items():
        node.setdefault(group, absent)
    model, machine = node.get("model"), node.get("machine")
    if isinstance(machine, dict) and isinstance(model, dict) and "attention" in machine:
        given = machine.pop("attention")
        if given != "auto":
            model["attention"] = given


def read_settings(path: Path, resolve: bool = False) -> dict[str, Any]:
    """The settings of a YAML file, with ``resolve`` its ``${...}`` resolved. Raises ConfigError when it
    holds none."""
    try:
        node = yaml_text.parse(path.read_text(encoding="utf-8"))
        if resolve:
            node = OmegaConf.to_container(OmegaConf.create(node), resolve=True)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(node, dict):
        raise ConfigError(f"{path} holds no settings: it was truncated or corrupted")
    return node


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML; ``read_config`` and ``as_handed`` read it back to an equal config."""
    return yaml_text.dump(config.resolved)


def as_handed(
    overrides: str, composed: str, default_dir: str, folders: Sequence[Path] | None = None
) -> RunConfig:
    """The config of a run from what its apps are handed: ``composed``, what ``to_yaml`` wrote, where there is
    any, which no process composes again; else as ``load`` makes it. Raises ConfigError as that does."""
    return handed(composed) if composed else load(overrides, default_dir, folders)


@lru_cache(maxsize=1)
def handed(composed: str) -> RunConfig:
    """The config that ``to_yaml`` wrote. The apps of a run in one process share it and what its task read."""
    return from_resolved(yaml_text.parse(composed))
