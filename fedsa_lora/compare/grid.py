"""Grids of a comparison: methods in regimes, with their learning rates and seeds, from a file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedsa_lora.binding import bind, unknown
from fedsa_lora.config.compose import read_settings
from fedsa_lora.config.options import Options
from fedsa_lora.config.paths import assignment
from fedsa_lora.errors import ConfigError

YOURS = "yours"  # a regime that a command gives
EVALUATED = ("evaluation.before=false", "evaluation.local_only=false", "run.report=false")  # all runs
SET = {"train.lr", "seed", "run.dir", "evaluation.every", *(word.partition("=")[0] for word in EVALUATED)}


@dataclass(frozen=True)
class Entry:
    """A method in a regime: ``words`` are its overrides, less learning rate and seed."""

    regime: str
    method: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One run of an entry; ``key`` is what makes two runs the same."""

    entry: Entry
    lr: float
    seed: int

    @property
    def key(self) -> tuple[tuple[str, ...], float, int]:
        return self.entry.words, self.lr, self.seed


@dataclass(frozen=True)
class Quick:
    """A part of a grid for a first look; ``words`` come after a method's."""

    regimes: list[str]
    methods: list[str]
    seeds: list[int]
    words: str = ""


@dataclass(frozen=True)
class Grid:
    """Overrides of each regime and method by name, as one line each.

    The learning rate of a method in a regime is the best of ``rates`` by the validation part of the first
    of ``seeds``; ``every_rate``: all are tried, also those greater than one that is clearly behind.
    ``rates_of``: methods that learn at rates of another size, such as training all weights, with theirs.
    ``reference`` is the method that others are measured by. ``fixed``: what a regime sets
    whatever a method says, such as ``head=frozen``. ``further``: methods of one regime alone. ``words``: what
    every run has, before the words of its regime.
    ``where_it_fits``: methods that are left out of a regime that they clash with; any other clash is an
    error. ``places``: folders by a name that stands for them in words; a regime whose folder is missing
    is left out. ``every``: rounds between evaluations.
    """

    title: str
    regimes: dict[str, str]
    methods: dict[str, str]
    reference: str
    seeds: list[int]
    rates: list[float]
    description: str = ""
    every: int = 3
    every_rate: bool = False
    rates_of: dict[str, list[float]] = field(default_factory=dict)
    words: str = ""
    fixed: dict[str, str] = field(default_factory=dict)
    further: dict[str, dict[str, str]] = field(default_factory=dict)
    where_it_fits: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    quick: Quick | None = None

    def __post_init__(self) -> None:
        faults = [f"{name}: expected at least one" for name in _NEEDED if not getattr(self, name)]
        lists: dict[str, Sequence[float]] = {"seeds": self.seeds, "rates": self.rates}
        for name, own in self.rates_of.items():
            lists[f"rates_of: {name}"] = own
            if not own:
                faults.append(f"rates_of: {name}: expected at least one")
        faults += [
            f"{name}: {some} has one twice" for name, some in lists.items() if len({*some}) < len(some)
        ]
        names = [*self.methods, *(method for some in self.further.values() for method in some)]
        quick = self.quick or Quick([], [], [])
        for place, known, given in (
            ("reference", list(self.methods), [self.reference]),
            ("fixed", list(self.regimes), self.fixed),
            ("further", list(self.regimes), self.further),
            ("where_it_fits", names, self.where_it_fits),
            ("rates_of", names, self.rates_of),
            ("quick.regimes", list(self.regimes), quick.regimes),
            ("quick.methods", list(self.methods), quick.methods),
        ):
            kind = "regime" if place in ("fixed", "further", "quick.regimes") else "method"
            faults += [unknown(f"{place}: {name}", kind, known, name) for name in given if name not in known]
        if self.quick and self.reference not in self.quick.methods:
            faults.append(f"quick.methods: the reference {self.reference!r} is missing")
        faults += [f"{line!r}: {fault}" for line in self._lines() if (fault := _unreadable(line))]
        if faults:
            raise ConfigError("; ".join(faults))

    def quickly(self) -> Grid:
        """The grid of a first look. Raises ConfigError when it has none."""
        if self.quick is None:
            raise ConfigError(f"the grid {self.title!r} has no block quick for --quick: add one")
        methods = {name: f"{self.methods[name]} {self.quick.words}" for name in self.quick.methods}
        regimes = {name: self.regimes[name] for name in self.quick.regimes}
        fixed = {name: words for name, words in self.fixed.items() if name in regimes}
        fits = [name for name in self.where_it_fits if name in methods]
        rates_of = {name: rates for name, rates in self.rates_of.items() if name in methods}
        return replace(
            self, regimes=regimes, methods=methods, seeds=self.quick.seeds, fixed=fixed, further={},
            where_it_fits=fits, rates_of=rates_of, quick=None,
        )  # fmt: skip

    def entries(self) -> list[Entry]:
        """Every method of every regime; of those with the same words in a regime one alone, the reference or
        else the first."""
        return list(self._kept().values())

    def shown_as(self, regime: str) -> dict[str, str]:
        """By method of a regime, the one with the same words there that is run for it."""
        kept = self._kept()
        return {e.method: kept[regime, e.words].method for e in self._all() if e.regime == regime}

    def common(self, regime: str) -> list[str]:
        """The words that every method of a regime has."""
        return shlex.split(f"{self.words} {self.regimes[regime]}")

    def rates_for(self, method: str) -> list[float]:
        """The learning rates that a method's is searched among."""
        return self.rates_of.get(method, self.rates)

    def missing(self) -> dict[str, str]:
        """By regime whose data are not here, the folder that it names."""
        found: dict[str, str] = {}
        for name, path in self.places.items():
            if not Path(path).expanduser().is_dir():
                found |= {r: path for r, words in self.regimes.items() if _names(words, name)}
        return found

    def overrides(self, run: Run) -> list[str]:
        """Overrides of a run: its words, with places where they are here, and what all have."""
        words = [self.located(word) for word in run.entry.words]
        return [
            *words, f"train.lr={run.lr}", f"seed={run.seed}", f"evaluation.every={self.every}", *EVALUATED
        ]  # fmt: skip

    def located(self, word: str) -> str:
        """An override with the folder in which a place is here, instead of its name: ``key=PLACE`` and
        ``key=PLACE/file``."""
        key, _, value = word.partition("=")
        place, *rest = value.strip("\"'").split("/")
        if place not in self.places:
            return word
        return assignment(key, str(Path(self.places[place], *rest).expanduser().resolve()))

    def misplaced(self, words: Sequence[str]) -> Iterator[str]:
        """A fault for each place in words that ``located`` does not find, such as within a list."""
        for word in words:
            key, _, value = word.partition("=")
            for place in self.places:
                if self.located(word) == word and re.search(rf"(?<![\w./-]){re.escape(place)}/", value):
                    yield f"{word}: the place {place} must begin the value, as in {key}={place}/file"

    def _lines(self) -> Iterator[str]:
        """Every line of overrides."""
        yield self.words
        for lines in (self.regimes, self.methods, self.fixed, *self.further.values()):
            yield from lines.values()

    def _kept(self) -> dict[tuple[str, tuple[str, ...]], Entry]:
        kept: dict[tuple[str, tuple[str, ...]], Entry] = {}
        for entry in self._all():
            key = entry.regime, entry.words
            if key not in kept or entry.method == self.reference:
                kept[key] = entry
        return kept

    def _all(self) -> Iterator[Entry]:
        for regime in self.regimes:
            fixed = shlex.split(self.fixed.get(regime, ""))
            for method, own in (self.methods | self.further.get(regime, {})).items():
                words = (*self.common(regime), *_with_fixed(shlex.split(own), fixed))
                yield Entry(regime, method, words)


_NEEDED = ("regimes", "methods", "seeds", "rates")


def read_grid(name: str) -> Grid:
    """The grid of a name in ``conf/compare`` or of a YAML file. Raises ConfigError that lists every fault."""
    known = Options.here().of("compare")
    path = known[name] if name in known else Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(unknown(name, "grid, nor a YAML file of one", list(known)))
    faults: list[str] = []
    settings = read_settings(path, resolve=True)
    if "methods" not in settings and "strategy" in settings:
        raise ConfigError(
            f"{path} is the config of a run: expected a grid before it, as in compare methods {path}"
        )
    grid = bind(Grid, settings, "", faults)
    if grid is None:
        raise ConfigError(f"the grid {path}:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return grid


def _with_fixed(words: list[str], fixed: list[str]) -> list[str]:
    """A method's words with those of the regime in place of the same keys, and the rest of them after."""
    by_key: Mapping[str, str] = {word.partition("=")[0]: word for word in fixed}
    keys = [word.partition("=")[0] for word in words]
    replaced = [by_key.get(key, word) for key, word in zip(keys, words, strict=True)]
    return [*replaced, *(word for key, word in by_key.items() if key not in keys)]


def _unreadable(line: str) -> str:
    try:
        shlex.split(line)
    except ValueError as error:
        return f"{error}; close every quote"
    return ""


def _names(words: str, place: str) -> bool:
    values = (word.partition("=")[2].strip("\"'") for word in shlex.split(words))
    return any(value.split("/")[0] == place for value in values)
