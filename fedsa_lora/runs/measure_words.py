"""The measures of personalisation in words: what a run reached, its references beside it, what it means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsa_lora.runs.measures import mean_known
from fedsa_lora.runs.outcomes import ClientOutcome, client_outcomes
from fedsa_lora.runs.reading import Row, RunRecord
from fedsa_lora.runs.wording import (
    NOT_MEASURED,
    amount,
    between,
    duration,
    number,
    percent,
    points,
    under_attack,
)


@dataclass(frozen=True)
class MeasureRow:
    """One measure as text: federated, of clients alone, of the learning-free floor, and what it says."""

    name: str
    federated: str
    meaning: str
    alone: str = ""
    majority: str = ""


def measure_rows(record: RunRecord) -> list[MeasureRow]:
    """Every measure that the run or an evaluation after it could have taken."""
    summary, outcomes = record.summary, client_outcomes(record)
    return [
        *(_spread(summary, *named) for named in SPREADS),
        _of_gain("Gain over alone", summary.get("gain_over_local"), f"training alone; {between(summary)}"),
        _of_gain("Gain over majority class", summary.get("gain_over_majority"), "learning nothing"),
        _harmed(summary),
        _target(summary.get("target")),
        _union(record.evaluation.get("union"), outcomes),
        _newcomer(record.evaluation.get("newcomer"), outcomes),
        *([_attack(attack)] if (attack := summary.get("attack")) else []),
    ]


def _deciles(values: Sequence[float] | None) -> str:
    return " ".join(f"{100 * value:.0f}" for value in values) if values else NOT_MEASURED


def _deviation(value: float | None) -> str:
    return points(value).lstrip("+")


SPREADS: list[tuple[str, str, Callable[..., str], str]] = [
    ("mean", "Mean accuracy", percent, "Each client counts the same."),
    ("weighted", "Weighted mean", percent, "A client counts by its test examples."),
    ("std", "Standard deviation", _deviation, "Between clients: smaller is more even."),
    ("worst", "Minimum", percent, "The worst client."),
    ("worst_tenth", "Worst tenth", percent, "Mean of the worst tenth of the clients, rounded up."),
    ("deciles", "Deciles (%)", _deciles, "A tenth of the clients is below the first, nine below the last."),
    ("jain", "Jain's index", number, "1: all clients alike; 1 / clients: one has everything."),
    ("entropy", "Entropy", number, "Of the clients' shares of the sum, over its maximum; 1: all alike."),
]


def _spread(summary: Row, key: str, name: str, told: Callable[..., str], meaning: str) -> MeasureRow:
    values = [
        told((summary.get(model) or {}).get(key)) for model in ("personalised", "local_only", "majority")
    ]
    return MeasureRow(name, values[0], meaning, *values[1:])


def _of_gain(name: str, gain: float | None, reference: str) -> MeasureRow:
    return MeasureRow(name, points(gain), f"Mean over clients, against {reference}.")


def _harmed(summary: Row) -> MeasureRow:
    return MeasureRow(
        "Clients harmed", percent(summary.get("share_harmed")), "Share that is worse off than alone."
    )


def _target(target: Row | None) -> MeasureRow:
    reached = NOT_MEASURED
    if target is not None:
        reached = "never"
        if target["rounds"] is not None:
            reached = f"round {target['rounds']}, {amount(target['bytes'])}, {duration(target['seconds'])}"
    return MeasureRow(
        "As good as alone from",
        reached,
        "When the mean was first that of training alone; both ways, training only.",
    )


def _union(union: Row | None, outcomes: list[ClientOutcome]) -> MeasureRow:
    name = "On all clients' examples"
    if union is None:
        return MeasureRow(name, NOT_MEASURED, "In simulation: fedsa-lora evaluate RUN --union")
    gap = mean_known([outcome.union_gap for outcome in outcomes])
    meaning = f"Each model on {union['examples']:,} examples. From there to its own it is {points(gap)}."
    return MeasureRow(name, percent(mean_known([outcome.union for outcome in outcomes])), meaning)


def _newcomer(newcomer: Row | None, outcomes: list[ClientOutcome]) -> MeasureRow:
    if newcomer is None:
        meaning = "In simulation: fedsa-lora evaluate RUN --newcomer-steps N"
        return MeasureRow("A newcomer", NOT_MEASURED, meaning)
    known = sum(newcomer["took_part"].values())
    return MeasureRow(
        f"A newcomer, {newcomer['steps']} steps",
        percent(mean_known([outcome.newcomer for outcome in outcomes])),
        "Joins at the end and trains for so long, against the same steps from the start. Played by "
        f"{len(newcomer['took_part'])} clients, of which {known} had a part in what is shared.",
        percent(mean_known([outcome.newcomer_alone for outcome in outcomes])),
    )


def _attack(attack: Row) -> MeasureRow:
    return MeasureRow("Attack success", percent(attack["success"]), under_attack(attack))
