"""Config groups that know themselves: what stands beside a field holds wherever a config is read.

Binding, clashes, the plan, resuming and stores loop over the fields of ``RunConfig`` and name none.
Marks stand in the annotation of a field: ``rounds: Annotated[int, at_least(1), CHANGEABLE]``. On a field of
``RunConfig`` they are of the whole group.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from fedsa_lora.learning.adapters import AdapterModel
    from fedsa_lora.settings import RunConfig


class Mark(Enum):
    """Facts about a key."""

    IDENTITY = "must be equal for the state that a client stored to be of use"
    CHANGEABLE = "may differ when a run is resumed"
    TEXT = "is text, whatever characters it has"
    READ = "is a folder, a file or a hub id, which clients read"
    FILES = "maps names to files that clients read"
    SERVED = "is a file that the server's machine reads"
    WRITTEN = "is a folder that a run writes"


IDENTITY, CHANGEABLE, TEXT, READ, FILES, SERVED, WRITTEN = Mark
PATHS = (READ, SERVED, WRITTEN)  # of keys that hold one path


@dataclass(frozen=True)
class Interval:
    """The finite numbers from ``low`` to ``high`` (None: without a bound); ``open``: without ``low``."""

    low: float
    high: float | None = None
    open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open else value >= self.low
        return above and value < math.inf and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        lower = f"{'more than' if self.open else 'at least'} {self.low:g}"
        return lower if self.high is None else f"{lower} and at most {self.high:g}"


def at_least(low: float, high: float | None = None) -> Interval:
    """The numbers from ``low`` on, which is one of them."""
    return Interval(low, high)


def more_than(low: float, high: float | None = None) -> Interval:
    """The numbers above ``low``."""
    return Interval(low, high, open=True)


@dataclass(frozen=True)
class Target:
    """A group whose ``_target_`` names its class, defined in one of the ``allowed`` packages (dotted names
    that end with a dot)."""

    allowed: tuple[str, ...]


class Keys:
    """A mark of some keys of a group whose class only the config names."""

    def __init__(self, mark: Mark, *names: str) -> None:
        self.mark, self.names = mark, names


class Group:
    """A part of a config. Subclasses override what is not true of them."""

    off: ClassVar[Mapping[str, str]] = {}  # lines of the plan where the group is not chosen
    why_alone: ClassVar[str] = ""  # where it is chosen, the reason why no client is trained with others

    @staticmethod
    def contradictions(node: Mapping[str, Any]) -> Iterator[str]:
        """Faults between the group's own keys, by their values before they are bound: reported even where
        others of its values are of no use."""
        return iter(())

    def clashes(self, run: RunConfig) -> Iterator[str]:
        """Faults of a sound group beside the other sound groups of its run, each with a way out."""
        return iter(())

    def describe(self) -> dict[str, str]:
        """Lines of the plan, by title."""
        return {}

    def describe_model(self, model: AdapterModel) -> dict[str, str]:
        """Lines of the plan on what becomes of the model, by title; it is on the meta device."""
        return {}

    def identity(self, run: RunConfig) -> dict[str, Any]:
        """Values beside those of the keys marked IDENTITY that must be equal for a stored state to be of
        use."""
        return {}

    def check_deployed(self) -> None:
        """Raise ConfigError where the group asks clients for something that only simulated ones do."""

    def out_of_range(self) -> list[str]:
        """A fault for each number that is not in its interval, for a group that is made without a config."""
        return [
            f"{key} is {value!r}: expected {interval}"
            for key, interval in ranges(type(self)).items()
            if (value := getattr(self, key)) is not None and value not in interval
        ]


@cache
def hints_of(what: Any) -> dict[str, Any]:
    """The declared types of a class or a function, with their marks; not to be changed."""
    return get_type_hints(what, include_extras=True)


@cache
def marks(group: type) -> tuple[tuple[str, Any], ...]:
    """The key and the mark of everything that is marked in a group and the groups within it, such as
    ``("federation.rounds", Interval(1))``."""
    found: list[tuple[str, Any]] = []
    for name, hint in hints_of(group).items():
        for mark in get_args(hint)[1:] if get_origin(hint) is Annotated else ():
            if isinstance(mark, Keys):
                found += [(f"{name}.{key}", mark.mark) for key in mark.names]
            else:
                found.append((name, mark))
        if is_dataclass(kind := held(hint)) and isinstance(kind, type):
            found += [(f"{name}.{key}", mark) for key, mark in marks(kind)]
    return tuple(found)


def marked(group: type, *wanted: Mark) -> tuple[str, ...]:
    """The keys that have one of these marks."""
    return tuple(key for key, mark in marks(group) if mark in wanted)


def ranges(group: type) -> dict[str, Interval]:
    """The interval of every number that has one, by its key."""
    return {key: mark for key, mark in marks(group) if isinstance(mark, Interval)}


def at(node: Mapping[str, Any], key: str) -> Any:
    """The value of plain settings at a dotted key."""
    value: Any = node
    for part in key.split("."):
        value = value[part]
    return value


def held(hint: Any) -> Any:
    """The type of a field without its marks and without None."""
    if get_origin(hint) is Annotated:
        return held(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return options[0] if len(options) == 1 else hint
    return hint
