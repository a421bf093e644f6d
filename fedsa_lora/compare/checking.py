"""Checks a grid as a whole, before anything of it runs and without the libraries that train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fedsa_lora.binding import raise_faults
from fedsa_lora.compare.grid import Entry, Grid, Run
from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError, FedSAError
from fedsa_lora.learning.settings import AUTO
from fedsa_lora.settings import RunConfig
from fedsa_lora.suggest import listing


def check(grid: Grid, name: str) -> tuple[list[Entry], list[str]]:
    """The entries that can be run here, and a remark on each thing that is left out.

    Each entry is composed and bound, and where all can be, each regime's data are divided, before anything
    runs. Raises ConfigError with every fault once, and the regimes and methods that have it where not all do.
    """
    missing = grid.missing()
    notes = [f"{regime} is left out: there is no folder {path}" for regime, path in missing.items()]
    entries = [entry for entry in grid.entries() if entry.regime not in missing]
    needed = [entry for entry in entries if entry.method not in grid.where_it_fits]
    faults, kept = _Faults(name, needed), list[Entry]()
    first: dict[str, RunConfig] = {}  # of each regime
    for entry in entries:
        try:
            config = _config(grid, entry)
        except FedSAError as error:
            if entry in needed:
                faults.add(error.faults, [entry])
            else:
                notes.append(f"{entry.method} does not fit {entry.regime}: {error.faults[-1]}")
            continue
        kept.append(entry)
        first.setdefault(entry.regime, config)
    raise_faults(faults.lines())
    for regime, config in first.items():
        of_data = _of_data(config, len(grid.rates) > 1)
        faults.add(of_data, [entry for entry in needed if entry.regime == regime])
    fits = {entry.method for entry in kept}
    unfit = [f"grid {name}: {m} fits no regime" for m in grid.where_it_fits if entries and m not in fits]
    raise_faults([*faults.lines(), *unfit])
    if not kept:
        raise ConfigError(f"grid {name}: nothing is left to run: {'; '.join(notes)}")
    return kept, notes


@dataclass
class _Faults:
    """Faults of a grid, each with the entries that have it, of all that must be without."""

    grid: str
    needed: Sequence[Entry]
    found: dict[str, list[Entry]] = field(default_factory=dict)

    def add(self, faults: Iterable[str], entries: Sequence[Entry]) -> None:
        for fault in faults:
            self.found.setdefault(fault, []).extend(entries)

    def lines(self) -> list[str]:
        """Each fault once, after its place."""
        return [self._place(entries) + fault for fault, entries in self.found.items()]

    def _place(self, entries: Sequence[Entry]) -> str:
        """Regimes or methods in words; empty where every entry has the fault, as one in words of all has."""
        regimes, methods = {entry.regime for entry in entries}, {entry.method for entry in entries}
        if all(entry in entries for entry in self.needed):
            return ""
        if all(entry in entries for entry in self.needed if entry.regime in regimes):
            return f"grid {self.grid}, regime {listing(sorted(regimes))}: "
        if all(entry in entries for entry in self.needed if entry.method in methods):
            return f"grid {self.grid}, method {listing(sorted(methods))}: "
        places = sorted({f"regime {entry.regime}, method {entry.method}" for entry in entries})
        return f"grid {self.grid}, {'; '.join(places)}: "


def _config(grid: Grid, entry: Entry) -> RunConfig:
    """The config of the first run of an entry. Raises FedSAError where it has faults."""
    raise_faults(list(grid.misplaced(entry.words)))
    config = load(grid.overrides(Run(entry, grid.rates_for(entry.method)[0], grid.seeds[0])))
    if config.train.batch_size == AUTO:
        raise ConfigError(
            f"train.batch_size={AUTO} follows the free memory, which differs between the runs of a "
            "comparison: expected a number"
        )
    return config


def _of_data(config: RunConfig, chosen: bool) -> Iterator[str]:
    """Faults of the data of a regime; ``chosen``: rates are, which takes a validation part."""
    if chosen and not config.federation.validation_examples:
        yield "rates are chosen with federation.validation_examples, which is 0"
    try:
        config.task.describe()
    except FedSAError as error:
        yield from error.faults
