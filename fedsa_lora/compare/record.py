"""Runs that were made, a line of a file each, so that an interrupted comparison can resume."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from fedsa_lora.compare.grid import Run
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.measure import CLASSES, Measure
from fedsa_lora.files import write_atomically, writing
from fedsa_lora.runs.measures import Values, spread
from fedsa_lora.runs.reading import Row, read_jsonl


@dataclass(frozen=True)
class Measured:
    """Results of a run. ``values`` are those of the primary ``measure`` by client, with its own model at the
    end, ``validation`` those on that part; bytes those of one client and round; ``seconds`` of training.
    ``curve`` has the mean over clients by evaluated round, under the name of the measure, with the ``bytes``
    of all training messages until then. ``majority`` is that of always predicting a client's most frequent
    class; ``data`` the digest of the rows, where it is known; ``attack_success`` the mean over the clients
    that had no part in an attack, None without one."""

    measure: Measure
    values: Values
    validation: Values
    bytes_up: float
    bytes_down: float
    aggregation_error: float | None
    seconds: float
    curve: list[Row]
    agreement: dict[str, float] | None = None
    attack_success: float | None = None
    majority: Values | None = None
    data: str | None = None

    @property
    def mean(self) -> float:
        """Over clients, on the test part."""
        return spread(self.values).mean

    @property
    def worst(self) -> float:
        """Of the clients, on the test part."""
        return spread(self.values, higher_is_better=self.measure.higher_is_better).worst

    @property
    def sent(self) -> float:
        """Bytes of all training messages of the run."""
        return float(self.curve[-1]["bytes"])


class Record:
    """The lines of a file: ``cell`` (the regime), ``method``, ``words``, ``lr``, ``seed``, and the ``result``
    or the ``error`` of the run. An error counts only where no line has a result."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = read_jsonl(path, ["words", "lr", "seed"]) if path.is_file() else []
        self._results: dict[object, Measured] = {}
        self._errors: dict[object, str] = {}
        for row in rows:
            self._take((tuple(row["words"]), float(row["lr"]), int(row["seed"])), row)
        self._lines = [json.dumps(row) for row in rows]

    def open(self) -> None:
        """Make ready to write: what a stopped process left unfinished goes, and what failed may be tried
        again."""
        self._errors.clear()
        text = "".join(f"{line}\n" for line in self._lines)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.encode())

    def forget(self) -> None:
        """Know nothing; ``open`` then empties the file."""
        self._results, self._errors, self._lines = {}, {}, []

    def add(self, run: Run, outcome: Row) -> None:
        """Append a run with its result or its error; the line is on disk when this returns."""
        words, lr, seed = run.key
        head = {"cell": run.entry.regime, "method": run.entry.method, "lr": lr, "seed": seed}
        line = json.dumps({**head, "words": list(words), **outcome}) + "\n"
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error.strerror}; free some space, then --resume"
            ) from error
        self._take(run.key, outcome)

    def result(self, run: Run) -> Measured | None:
        return self._results.get(run.key)

    def error(self, run: Run) -> str | None:
        """The reason why a run failed; None as well when it was not made."""
        return None if run.key in self._results else self._errors.get(run.key)

    def settled(self, run: Run) -> bool:
        return run.key in self._results or run.key in self._errors

    def __len__(self) -> int:
        return len(self._results) + len(self._errors)

    def _take(self, key: object, outcome: Row) -> None:
        if "result" in outcome:
            try:
                self._results[key] = _measured(outcome["result"])
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(f"{self.path}: {error}; was it written by another version?") from None
        else:
            self._errors[key] = str(outcome.get("error", "no reason was recorded"))


def _measured(result: Row) -> Measured:
    """The result of a line, which has the values under the name of the measure: accuracy, in a line of a
    version that recorded none."""
    fields = dict(result)
    measure = Measure.read(fields.pop("measure")) if "measure" in fields else CLASSES[0]
    return Measured(measure, fields.pop(measure.name), **fields)
