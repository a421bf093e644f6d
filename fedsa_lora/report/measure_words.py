"""The measures of personalisation in words: what a run reached, its references beside it, what it means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedsa_lora.exchange.measure import Measure
from fedsa_lora.report.wording import (
    NOT_MEASURED,
    amount,
    between,
    duration,
    number,
    percent,
    shown,
    shown_gain,
    under_attack,
)
from fedsa_lora.runs.measures import mean_known
from fedsa_lora.runs.outcomes import ClientOutcome, client_outcomes
from fedsa_lora.runs.reading import Row, RunRecord


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
    summary, outcomes, primary = record.summary, client_outcomes(record), record.primary
    alone = f"training alone; {between(summary, primary)}"
    rows = [
        *_spreads(summary, primary),
        _of_gain("Gain over alone", summary.get("gain_over_local"), alone, primary),
        _of_gain(
            "Gain over majority class",
            summary.get("gain_over_majority"),
            "always predicting the majority class",
            primary,
        ),
        _harmed(summary),
        _target(summary.get("target"), primary),
        _union(record.evaluation.get("union"), outcomes, primary),
        _newcomer(record.evaluation.get("newcomer"), outcomes, primary),
    ]
    if attack := summary.get("attack"):
        rows.append(_attack(attack, primary))
    return rows


def _deciles(values: Sequence[float] | None, measure: Measure) -> str:
    if not values:
        return NOT_MEASURED
    if measure.format == "percent":
        return " ".join(f"{100 * value:.0f}" for value in values)
    return " ".join(map(number, values))


def _deviation(value: float | None, measure: Measure) -> str:
    return shown_gain(value, measure).lstrip("+")


def _plain(value: float | None, measure: Measure) -> str:
    return number(value)


def _spreads(summary: Row, measure: Measure) -> list[MeasureRow]:
    """Rows of the spread over clients, in the format of its measure."""
    deciles = "Deciles (%)" if measure.format == "percent" else "Deciles"
    extreme = "Minimum" if measure.higher_is_better else "Maximum"
    named: list[tuple[str, str, Callable[[Any, Measure], str], str]] = [
        ("mean", f"Mean {measure.words}", shown, "All clients have equal weight."),
        ("weighted", "Weighted mean", shown, "Clients are weighted by their test examples."),
        ("std", "Standard deviation", _deviation, "Over clients; smaller is more even."),
        ("worst", extreme, shown, "The worst client."),
        ("worst_tenth", "Worst tenth", shown, "Mean of the worst tenth of the clients, rounded up."),
        ("deciles", deciles, _deciles, "10, 20, ... 90% of the clients are below these values."),
        ("jain", "Jain's index", _plain, "1: all clients equal; 1 / clients: one has everything."),
        ("entropy", "Entropy", _plain, "Of the clients' shares of the sum, over its maximum; 1: all equal."),
    ]
    models = [summary.get(model) or {} for model in ("personalised", "local_only", "majority")]
    rows = []
    for key, name, told, meaning in named:
        ours, *others = (told(model.get(key), measure) for model in models)
        rows.append(MeasureRow(name, ours, meaning, *others))
    return rows


def _of_gain(name: str, gain: float | None, reference: str, measure: Measure) -> MeasureRow:
    return MeasureRow(name, shown_gain(gain, measure), f"Mean over clients, against {reference}.")


def _harmed(summary: Row) -> MeasureRow:
    return MeasureRow(
        "Clients harmed", percent(summary.get("share_harmed")), "Share of clients worse off than alone."
    )


def _target(target: Row | None, measure: Measure) -> MeasureRow:
    reached = NOT_MEASURED
    if target is not None:
        reached = "never"
        if target["rounds"] is not None:
            reached = f"round {target['rounds']}, {amount(target['bytes'])}, {duration(target['seconds'])}"
    return MeasureRow(
        f"First round at or {'above' if measure.higher_is_better else 'below'} training alone",
        reached,
        "When the mean first reached that of training alone; bytes up and down, training only.",
    )


def _union(union: Row | None, outcomes: list[ClientOutcome], measure: Measure) -> MeasureRow:
    name = "On all clients' examples"
    if union is None:
        return MeasureRow(name, NOT_MEASURED, "In simulation: fedsa-lora evaluate RUN --union")
    gap = mean_known([outcome.union_gap for outcome in outcomes])
    gained = shown_gain(gap, measure)
    meaning = f"Each model on {union['examples']:,} examples; on its own test part it gains {gained}."
    return MeasureRow(name, shown(mean_known([outcome.union for outcome in outcomes]), measure), meaning)


def _newcomer(newcomer: Row | None, outcomes: list[ClientOutcome], measure: Measure) -> MeasureRow:
    if newcomer is None:
        meaning = "In simulation: fedsa-lora evaluate RUN --newcomer-steps N"
        return MeasureRow("A newcomer", NOT_MEASURED, meaning)
    known = sum(newcomer["took_part"].values())
    return MeasureRow(
        f"A newcomer, {newcomer['steps']} steps",
        shown(mean_known([outcome.newcomer for outcome in outcomes]), measure),
        "Joins at the end and trains that many steps, compared with the same steps from the initial model. "
        "Simulated by "
        f"{len(newcomer['took_part'])} clients, of which {known} contributed to the shared values.",
        shown(mean_known([outcome.newcomer_alone for outcome in outcomes]), measure),
    )


def _attack(attack: Row, measure: Measure) -> MeasureRow:
    return MeasureRow("Attack success", percent(attack["success"]), under_attack(attack, measure))
