"""Runs that a method needs: a search for its learning rate, then the best rate on every seed.

Rates are tried on the first seed, from the smallest. A rate that is clearly behind a smaller one ends the
search, and greater ones are left out: clearly is by more than ``CLEAR`` standard errors of the mean of paired
differences over clients, on the validation part.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsa_lora.compare.grid import Entry, Run
from fedsa_lora.compare.record import Measured, Record
from fedsa_lora.runs.measures import lead, spread

CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class Search:
    """The runs of an entry: a search over ``rates`` on the first seed, over all of them with ``every_rate``,
    then the best rate on every seed."""

    entry: Entry
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    every_rate: bool = False

    def needed(self, record: Record) -> list[Run]:
        """The runs that are known to be needed and are not settled; none when the entry is complete."""
        search = [run for run in self._search(record) if not record.settled(run)]
        if search or (best := self.best(record)) is None:
            return search
        return [run for run in self.at(best) if not record.settled(run)]

    def best(self, record: Record) -> float | None:
        """The rate with the best mean on the validation part, of equal ones the first; None while
        one is missing, or when all failed."""
        search = self._search(record)
        if not all(record.settled(run) for run in search):
            return None
        found = {run.lr: result for run in search if (result := record.result(run)) is not None}
        if len(found) < 2:
            return next(iter(found), None)
        return max(found, key=lambda lr: (_merit(found[lr]), -self.rates.index(lr)))

    def at(self, lr: float) -> list[Run]:
        """The runs of a rate, by seed."""
        return [Run(self.entry, lr, seed) for seed in self.seeds]

    def made(self, record: Record) -> list[Run]:
        """The runs that have a result, at whatever rate."""
        return [run for lr in self.rates for run in self.at(lr) if record.result(run) is not None]

    def settled(self, record: Record) -> int:
        """Counts those of the ``length`` runs that need not be made any more."""
        search, best = self._search(record), self.best(record)
        if best is not None:
            return len(self.rates) + sum(record.settled(run) for run in self.at(best)[1:])
        done = sum(record.settled(run) for run in search)
        return self.length if done == len(search) else done

    def failed(self, record: Record) -> list[tuple[Run, str]]:
        """Every run that was needed and failed, with the reason."""
        best = self.best(record)
        asked = dict.fromkeys([*self._search(record), *(self.at(best) if best is not None else [])])
        return [(run, reason) for run in asked if (reason := record.error(run)) is not None]

    @property
    def length(self) -> int:
        """Number of runs that the entry takes at most."""
        return len(self.rates) + len(self.seeds) - 1

    def _search(self, record: Record) -> list[Run]:
        """The runs of the search that are known to be needed, from the smallest rate, and all that are
        recorded: what was measured counts, whatever it was made for."""
        runs: list[Run] = []
        for lr in sorted(self.rates):
            run = Run(self.entry, lr, self.seeds[0])
            if record.settled(run) or self.every_rate or _goes_on(runs, record):
                runs.append(run)
        return runs


def _goes_on(runs: list[Run], record: Record) -> bool:
    """True where a rate greater than those of ``runs`` is to be tried: there are two to compare at least, all
    have ended, and the last is not clearly behind a smaller one."""
    if len(runs) < 2:
        return True
    if not all(record.settled(run) for run in runs):
        return False
    *smaller, last = [record.result(run) for run in runs]
    return last is None or not any(other is not None and _clearly_behind(last, other) for other in smaller)


def _clearly_behind(run: Measured, other: Measured) -> bool:
    gain, noise = lead(other.validation, run.validation, run.measure.higher_is_better)
    return gain > CLEAR * noise


def _merit(run: Measured) -> float:
    return run.measure.merit(spread(run.validation).mean)
