"""Runs that a method needs: a search for its learning rate, then the best rate on every seed."""

from __future__ import annotations

from dataclasses import dataclass

from fedsa_lora.compare.grid import Entry, Run
from fedsa_lora.compare.record import Measured, Record
from fedsa_lora.runs.measures import spread


@dataclass(frozen=True)
class Search:
    """The runs of an entry: a search over ``rates`` on the first seed, then the best rate on every seed."""

    entry: Entry
    rates: tuple[float, ...]
    seeds: tuple[int, ...]

    def needed(self, record: Record) -> list[Run]:
        """The runs that are known to be needed and are not settled; none when the entry is complete."""
        search = [run for run in self._search() if not record.settled(run)]
        if search or (best := self.best(record)) is None:
            return search
        return [run for run in self.at(best) if not record.settled(run)]

    def best(self, record: Record) -> float | None:
        """The rate with the best mean on the validation part, of equal ones the first; None while
        one is missing, or when all failed."""
        tried = [(run.lr, record.result(run)) for run in self._search()]
        if any(not record.settled(run) for run in self._search()):
            return None
        found = {lr: result for lr, result in tried if result is not None}
        if len(found) < 2:
            return next(iter(found), None)
        return max(found, key=lambda lr: _merit(found[lr]))

    def at(self, lr: float) -> list[Run]:
        """The runs of a rate, by seed."""
        return [Run(self.entry, lr, seed) for seed in self.seeds]

    def made(self, record: Record) -> list[Run]:
        """The runs that have a result, at whatever rate."""
        return [run for lr in self.rates for run in self.at(lr) if record.result(run) is not None]

    def settled(self, record: Record) -> int:
        """Counts those of the ``length`` runs that need not be made any more."""
        search, best = self._search(), self.best(record)
        if all(record.settled(run) for run in search) and best is None:
            return self.length
        at_best = self.at(best)[1:] if best is not None else []
        return sum(record.settled(run) for run in [*search, *at_best])

    def failed(self, record: Record) -> list[tuple[Run, str]]:
        """Every run that was needed and failed, with the reason."""
        best = self.best(record)
        asked = dict.fromkeys([*self._search(), *(self.at(best) if best is not None else [])])
        return [(run, reason) for run in asked if (reason := record.error(run)) is not None]

    @property
    def length(self) -> int:
        """Number of runs that the entry takes in all."""
        return len(self.rates) + len(self.seeds) - 1

    def _search(self) -> list[Run]:
        return [Run(self.entry, lr, self.seeds[0]) for lr in self.rates]


def _merit(run: Measured) -> float:
    return run.measure.merit(spread(run.validation).mean)
