"""A comparison from its grid to its tables and figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from fedsa_lora.compare.checking import check
from fedsa_lora.compare.grid import Entry, Grid, Run
from fedsa_lora.compare.page import page, rows, verdict
from fedsa_lora.compare.record import Record
from fedsa_lora.compare.scores import Score, lead, scores
from fedsa_lora.compare.search import Search
from fedsa_lora.compare.significance import Difference
from fedsa_lora.config.compose import load
from fedsa_lora.errors import DataError, RunError
from fedsa_lora.files import write_atomically, writing
from fedsa_lora.runs.reading import Row
from fedsa_lora.runs.spreadsheet import as_csv
from fedsa_lora.tasks.fingerprint import fingerprint_of


@dataclass(frozen=True)
class Comparison:
    """A grid, what of it can be run here with remarks on the rest, and what is recorded: in ``folder``, or
    in a ``file`` that several grids may share, in which runs that they have in common are made once."""

    grid: Grid
    folder: Path
    searches: list[Search]
    notes: list[str]
    record: Record

    @classmethod
    def to_run(cls, grid: Grid, name: str, folder: Path, file: Path | None = None) -> Comparison:
        """The grid as it can be run here, checked as a whole. Raises ConfigError that lists every fault."""
        entries, notes = check(grid, name)
        return cls(grid, folder, _searches(grid, entries), notes, Record(file or folder / "runs.jsonl"))

    @classmethod
    def recorded(cls, grid: Grid, folder: Path, file: Path | None = None) -> Comparison:
        """The grid as it was run, perhaps elsewhere. Raises RunError where nothing was."""
        record = Record(file or folder / "runs.jsonl")
        if not len(record):
            raise RunError(
                f"{record.path} holds no runs: leave out --recorded, or give their place with --to or "
                f"--record"
            )
        searches = _searches(grid, grid.entries())
        optional = [s for s in searches if s.entry.method in grid.where_it_fits and not s.settled(record)]
        return cls(grid, folder, [s for s in searches if s not in optional], [], record)

    def run(
        self,
        processes: int | None,
        console: Console,
        resume: bool = False,
        restart: bool = False,
        measure: Callable[[Path], Row] | None = None,
    ) -> None:
        """Make what is missing in parallel ``processes``, by default as many as cores and memory allow, and
        measure each run by ``measure``, by default ``measured``. Raises RunError where runs are recorded
        already, and neither to continue with them nor to begin anew was asked for; and DataError where they
        were made on other data than there are now."""
        if restart:
            self.record.forget()
        elif len(self.record) and not resume:
            raise RunError(
                f"{self.record.path} holds {len(self.record)} runs: --resume continues with them, "
                f"--restart discards them, --recorded shows them, --to writes elsewhere"
            )
        self._check_data()
        self.record.open()
        # what trains takes seconds to load: what was wrong so far is reported without it
        from fedsa_lora.compare.making import at_once, make
        from fedsa_lora.compare.measure import measured

        make(self.grid, self.searches, self.record, processes or at_once(), console, measure or measured)

    def write(self) -> bool:
        """Write table, rows and figures of what is recorded; True when nothing failed or is missing."""
        from fedsa_lora.compare.figure import draw
        from fedsa_lora.report.style import to_png

        by_regime = {regime: self.scores(regime) for regime in self.regimes}
        text = page(self.grid, by_regime, self.notes, self.failures(), missing := self.missing())
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "table.md", text.encode())
        write_atomically(self.folder / "table.csv", as_csv(self.rows()).encode())
        for regime, found in by_regime.items():
            if found:
                name = re.sub(r"[^\w.-]+", "_", regime)
                write_atomically(self.folder / f"{name}.png", to_png(draw(found, self.grid.reference)))
        return not missing and not self.failures()

    def rows(self) -> list[dict[str, Any]]:
        """One flat row for each complete method of each regime, as in ``table.csv``."""
        return [row for regime in self.regimes for row in rows(self.scores(regime))]

    @property
    def regimes(self) -> list[str]:
        return list(dict.fromkeys(search.entry.regime for search in self.searches))

    def scores(self, regime: str) -> list[Score]:
        """The complete methods of a regime, the best first."""
        return scores(self._of(regime), self.record, self.grid.reference)

    def lead(self, regime: str, method: str, other: str) -> Difference:
        """The lead of a method over another. Raises RunError where one of them is not complete."""
        return lead(self._of(regime), self.record, method, other)

    def verdicts(self) -> list[str]:
        """One line for each regime of which something is complete."""
        return [verdict(found) for regime in self.regimes if (found := self.scores(regime))]

    def failures(self) -> list[str]:
        """One line for each run that failed."""
        failed = [found for search in self.searches for found in search.failed(self.record)]
        return [
            f"{run.entry.regime}, {run.entry.method}, lr {run.lr:g}, seed {run.seed}: {' '.join(why.split())}"
            for run, why in failed
        ]

    def stopped(self) -> str:
        """Words for a comparison that was stopped: what remains, and the command to resume it."""
        done = sum(search.settled(self.record) for search in self.searches)
        return (
            f"stopped; {done} of {done + self.missing()} runs are recorded in {self.record.path}: continue "
            f"with the same command and --resume"
        )

    def missing(self) -> int:
        """Number of runs that are still to be made."""
        return sum(search.length - search.settled(self.record) for search in self.searches)

    def _check_data(self) -> None:
        """Compare the data of each regime with those of a run of it that is recorded, if any is."""
        for regime in self.regimes:
            made = [run for search in self._of(regime) for run in search.made(self.record)]
            known = next((run for run in made if self._data(run)), None)
            if known is None:
                continue
            now = fingerprint_of(load(self.grid.overrides(known)).task)
            if now is not None and now.digest != self._data(known):
                raise DataError(
                    f"regime {regime}: {now.source} differs from the data of its runs in "
                    f"{self.record.path} (digest {self._data(known)}, now {now.digest}), so they cannot be "
                    f"compared with new "
                    "ones; restore the data, start over with --restart, or write elsewhere with --to"
                )

    def _data(self, run: Run) -> str | None:
        result = self.record.result(run)
        return None if result is None else result.data

    def _of(self, regime: str) -> Sequence[Search]:
        return [search for search in self.searches if search.entry.regime == regime]


def _searches(grid: Grid, entries: Sequence[Entry]) -> list[Search]:
    return [
        Search(entry, tuple(grid.rates_for(entry.method)), tuple(grid.seeds), grid.every_rate)
        for entry in entries
    ]
