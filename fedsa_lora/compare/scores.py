"""Scores of the methods of a regime, each against the reference and against the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedsa_lora.compare.grid import Entry
from fedsa_lora.compare.record import Measured, Record
from fedsa_lora.compare.search import Search
from fedsa_lora.compare.significance import Difference, holm, paired
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.runs.measures import LEVEL, Values, first_at, gains, harmed, mean_known, spread
from fedsa_lora.suggest import listing

Pairs = Sequence[Values]  # the primary measure by client, one mapping for each seed


@dataclass(frozen=True)
class Score:
    """A method in a regime over its seeds, in the primary measure of clients' own models on the test part.

    ``std`` is that of the means of the seeds (None of one seed). ``harmed``: share of (client, seed) worse
    than the reference's model of the same client and seed; ``gain`` how much better the mean is. Bytes up and
    down are of a client and round, ``sent`` of all training messages of a run, the mean over seeds,
    ``to_target`` of those until the mean over clients first reached the reference's mean, by seed;
    ``seconds`` of the fastest run. ``majority``: of predicting each client's most frequent class. ``behind``:
    how much better the best method is, by pairs; None for the best itself; ``p`` is adjusted for all methods
    of the regime.
    """

    measure: Measure
    regime: str
    method: str
    lr: float
    means: tuple[float, ...]
    std: float | None
    worst: float
    harmed: float | None
    gain: float | None
    bytes_up: float
    bytes_down: float
    sent: float
    to_target: tuple[float | None, ...]
    seconds: float
    aggregation_error: float | None
    attack_success: float | None
    majority: float | None
    behind: Difference | None

    @property
    def mean(self) -> float:
        """Over clients and seeds."""
        return fmean(self.means)

    @property
    def level(self) -> bool:
        """True where this method is the best or does not differ from it significantly."""
        return self.behind is None or self.behind.p >= LEVEL


@dataclass(frozen=True)
class _Complete:
    """A method with a run for every seed, at its best rate."""

    entry: Entry
    lr: float
    runs: list[Measured]

    @property
    def measure(self) -> Measure:
        """That of its runs."""
        return self.runs[0].measure

    @property
    def mean(self) -> float:
        return fmean(run.mean for run in self.runs)


def scores(searches: Sequence[Search], record: Record, reference: str) -> list[Score]:
    """Of the complete methods of one regime, the best mean first; equal ones as they were given. Raises
    RunError where they are not in the same measure."""
    complete = [found for search in searches if (found := _completed(search, record))]
    alone = next((method for method in complete if method.entry.method == reference), None)
    ordered = sorted(complete, key=lambda method: -method.measure.merit(method.mean))
    if len(names := {method.measure.name for method in complete}) > 1:
        raise RunError(
            f"regime {complete[0].entry.regime}: its methods are measured by {listing(sorted(names))}, and "
            "can be compared in one measure only; give each task a separate regime"
        )
    higher = not complete or complete[0].measure.higher_is_better
    behind = _behind([[run.values for run in method.runs] for method in ordered], higher)
    return [_score(method, alone, apart) for method, apart in zip(ordered, behind, strict=True)]


def lead(searches: Sequence[Search], record: Record, method: str, other: str) -> Difference:
    """The lead of a method over another of the same regime, over (client, seed), each at its best rate.
    Raises RunError where one of them is not complete."""
    found = {search.entry.method: _completed(search, record) for search in searches}
    one, two = found.get(method), found.get(other)
    if one is None or two is None:
        absent = method if one is None else other
        raise RunError(f"{absent!r} has no run for every seed here; there are {listing(found)}")
    higher = one.measure.higher_is_better
    return paired(_differences([r.values for r in one.runs], [r.values for r in two.runs], higher))


def _completed(search: Search, record: Record) -> _Complete | None:
    if (best := search.best(record)) is None:
        return None
    found = [record.result(run) for run in search.at(best)]
    runs = [result for result in found if result is not None]
    return _Complete(search.entry, best, runs) if len(runs) == len(found) else None


def _score(method: _Complete, alone: _Complete | None, behind: Difference | None) -> Score:
    runs, means = method.runs, tuple(run.mean for run in method.runs)
    mine, theirs = _pooled(runs), _pooled(alone.runs if alone else [])
    target = alone.mean if alone else None
    higher = method.measure.higher_is_better
    found = gains(mine, theirs, higher)
    worst = [run.worst for run in runs]
    return Score(
        measure=method.measure,
        regime=method.entry.regime,
        method=method.entry.method,
        lr=method.lr,
        means=means,
        std=stdev(means) if len(means) > 1 else None,
        worst=min(worst, key=method.measure.merit),
        harmed=harmed(mine, theirs, higher),
        gain=fmean(found.values()) if found else None,
        bytes_up=fmean(run.bytes_up for run in runs),
        bytes_down=fmean(run.bytes_down for run in runs),
        sent=fmean(run.sent for run in runs),
        to_target=tuple(_to_target(run, target) for run in runs),
        seconds=min(run.seconds for run in runs),  # other work on the machine only adds to it
        aggregation_error=mean_known([run.aggregation_error for run in runs]),
        attack_success=mean_known([run.attack_success for run in runs]),
        majority=mean_known([spread(run.majority).mean for run in runs if run.majority]),
        behind=behind,
    )


def _to_target(run: Measured, target: float | None) -> float | None:
    """Bytes until the mean over clients first reached the target; None when it never did, or without one."""
    if target is None:
        return None
    curve = [(point["bytes"], point[run.measure.name]) for point in run.curve]
    return first_at(curve, target, run.measure.higher_is_better)


def _behind(ordered: Sequence[Pairs], higher_is_better: bool) -> list[Difference | None]:
    """Lead of the first over each of the others, over (client, seed), with p adjusted by Holm."""
    raw = [paired(_differences(ordered[0], other, higher_is_better)) for other in ordered[1:]]
    adjusted = holm([difference.p for difference in raw])
    told = [Difference(d.mean, d.low, d.high, p) for d, p in zip(raw, adjusted, strict=True)]
    return [None, *told][: len(ordered)]


def _differences(best: Pairs, other: Pairs, higher_is_better: bool) -> list[float]:
    found: list[float] = []
    for mine, theirs in zip(best, other, strict=True):
        found += gains(mine, theirs, higher_is_better).values()
    return found


def _pooled(runs: Sequence[Measured]) -> Mapping[str, float]:
    """The values by (seed, client) as one mapping, so that a client is compared with itself."""
    return {f"{i}/{name}": value for i, run in enumerate(runs) for name, value in run.values.items()}
