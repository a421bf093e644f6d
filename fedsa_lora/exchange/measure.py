"""A measure of a task: its name, its range, which way is better, and how it is shown.

The first measure that a task declares is its primary one: clients are compared by it, and rows, summary,
figures and report carry its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Range = tuple[float, float]  # lowest and highest value

LARGEST = 1e150  # neither sums nor squares of such numbers overflow
ROUNDING = 1e-9  # by which the Matthews correlation of a perfect model may exceed 1
SHARE: Range = (0.0, 1.0)  # of the examples that a client is measured on
ENTROPY: Range = (0.0, LARGEST)
FORMATS = ("percent", "number")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Measure:
    """One number of ``Task.evaluate``. ``format``: "percent" of a share from 0 to 1, whose differences are in
    points, or "number" of any other."""

    name: str
    range: Range
    higher_is_better: bool = True
    format: Literal["percent", "number"] = "number"

    @property
    def words(self) -> str:
        """The name as a reader has it."""
        return self.name.replace("_", " ")

    @property
    def before(self) -> str:
        """The key of a client's own model before aggregation."""
        return f"{self.name}_before"

    @property
    def weighted(self) -> str:
        """The key of the mean weighted by test examples."""
        return f"{self.name}_weighted"

    @property
    def worst(self) -> str:
        """The key of the worst client's value."""
        return f"{self.name}_worst"

    @property
    def of_global(self) -> str:
        """The key of the global model."""
        return f"global_{self.name}"

    def merit(self, value: float) -> float:
        """The value, with its sign turned where lower is better: of two, the larger merit is the better."""
        return value if self.higher_is_better else -value

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Measure:
        """A measure as a run has recorded it."""
        low, high = row["range"]
        return cls(row["name"], (low, high), row["higher_is_better"], row["format"])


# Measures of classes; runs of versions that recorded no measures had these
CLASSES = (
    Measure("accuracy", SHARE, format="percent"),
    Measure("loss", ENTROPY, higher_is_better=False),
    Measure("macro_f1", SHARE, format="percent"),
    Measure("matthews", (-1 - ROUNDING, 1 + ROUNDING)),
)

# Keys that rows and results have beside the measures
RESERVED = frozenset(
    (
        "round", "client", "phase", "examples", "measured", "bytes_up", "bytes_down", "seconds", "steps",
        "tokens", "padded_tokens", "private_before", "private_after", "local_only", "majority",
        "attack_success", "fit_clients", "fit_failures", "fit_seconds", "remarks", "skipped", "present",
        "excluded", "asked", "shared", "split", "groups", "aggregation_error", "measured_clients",
        "evaluated", "training_bytes", "rounds", "bytes", "alone", "took_part", "validation", "curve",
        "data", "agreement", "measure", "mean", "group_sizes", "threshold",
        # and the families of metrics.prom
        "run_state", "rounds_total", "rounds_planned", "failures_total", "traffic_bytes_total",
        "rounds_seconds_total", "last_round_timestamp_seconds", "round_clients", "round_loss",
        "round_seconds",
    )
)  # fmt: skip


def faults(measures: object) -> list[str]:
    """Faults of what a task declares as its ``measures``, a line each; none where they are of use."""
    if not isinstance(measures, tuple) or not measures:
        given = f"a {type(measures).__name__}" if measures else "none declared"
        return [f"measures: {given}; expected a tuple of Measure, the one that clients are compared by first"]
    if strange := [entry for entry in measures if not isinstance(entry, Measure)]:
        return [
            f"measures: {strange[0]!r} is not a Measure; expected Measure(name, range, higher_is_better, "
            f"format)"
        ]
    found = [line for measure in measures for line in _faults_of(measure)]
    return found or _collisions(measures)


def _faults_of(measure: Measure) -> list[str]:
    found = []
    if not _NAME.fullmatch(str(measure.name)):
        found.append(
            f"measures: {measure.name!r} is not a valid name; expected up to 40 of a-z, 0-9 and _, such as "
            f"'f1'"
        )
    if not _is_range(measure.range):
        found.append(
            f"measures: the range of {measure.name!r} is {measure.range!r}; expected (low, high), low below "
            f"high, both from {-LARGEST:g} to {LARGEST:g}"
        )
    if measure.format not in FORMATS:
        found.append(
            f"measures: the format of {measure.name!r} is {measure.format!r}; expected one of {FORMATS}"
        )
    return found


def _is_range(ends: object) -> bool:
    if not isinstance(ends, tuple) or len(ends) != 2:
        return False
    low, high = ends
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return False
    return -LARGEST <= low < high <= LARGEST


def _collisions(measures: Sequence[Measure]) -> list[str]:
    """Names that stand for two things in a row: for two measures, or for what rows have anyway. The loss of
    training has a place in the row of a round, so that no primary measure can."""
    primary = measures[0]
    names = [measure.name for measure in measures]
    keys = [*names, primary.before, primary.weighted, primary.worst, primary.of_global]
    taken = RESERVED | ({"loss"} if primary.name == "loss" else set())
    twice = sorted({key for key in keys if keys.count(key) > 1 or key in taken})
    if not twice:
        return []
    return [f"measures: {', '.join(map(repr, twice))} would have two meanings in a row; expected other names"]
