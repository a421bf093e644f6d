"""Numbers and results in words, the same on the screen and in the report."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from fedsa_lora.exchange.measure import Measure
from fedsa_lora.runs.reading import Row
from fedsa_lora.suggest import listing

AXIS = 40  # letters along the height of a figure
NOT_MEASURED = "–"  # noqa: RUF001
ROLE_NAMES = {
    "A": "the A matrices",
    "B": "the B matrices",
    "head": "the classification head",
    "base": "the base model",
}
MODEL_NAMES = {
    "personalised": "federated, personalised",
    "before_aggregation": "federated, before aggregation",
    "local_only": "alone (local-only)",
    "majority": "majority class",
    "global": "global model",
}


@dataclass(frozen=True)
class Reached:
    """Results of one kind of model over all clients, as text."""

    model: str
    mean: str
    weighted: str
    worst: str
    ours: bool


@dataclass(frozen=True)
class Verdict:
    """Verdict whether federation was better than training alone: a short answer, a sentence, and its tone."""

    answer: str
    sentence: str
    tone: str


def percent(fraction: float | None) -> str:
    """0.6132 -> '61.3%'."""
    return f"{fraction:.1%}" if _known(fraction) else NOT_MEASURED


def points(difference: float | None) -> str:
    """0.0712 -> '+7.1 points'; a difference of two percentages is not itself a percentage."""
    if difference is None or not _known(difference):
        return NOT_MEASURED
    tenths = round(100 * difference, 1) + 0.0  # adding zero turns -0.0 into 0.0
    return f"{tenths:+.1f} points".replace("-", "−") if tenths else "0.0 points"  # noqa: RUF001


def shown(value: float | None, measure: Measure) -> str:
    """A value in the format of its measure."""
    return percent(value) if measure.format == "percent" else number(value)


def shown_gain(gain: float | None, measure: Measure) -> str:
    """A difference that is better when higher: in points, or '+0.125' of a plain number."""
    if measure.format == "percent":
        return points(gain)
    if gain is None or not _known(gain):
        return NOT_MEASURED
    text = number(gain)
    if float(text) == 0:
        return text.removeprefix("-")
    return text.replace("-", "−") if gain < 0 else f"+{text}"  # noqa: RUF001


def difference(value: float, measure: Measure, sign: Literal["", "+"] = "") -> str:
    """A difference without its unit: in points, or to three decimals of a plain number."""
    return f"{100 * value:{sign}.1f}" if measure.format == "percent" else f"{value:{sign}.3f}"


def without_unit(difference: str) -> str:
    """'+7.1 points' -> '+7.1'."""
    return difference.removesuffix(" points")


def of_measure(measure: Measure) -> str:
    """The measure with its unit, as an axis has it: 'accuracy on own test examples (%)'. Lines are short
    enough for the height of a figure."""
    better = "higher is better" if measure.higher_is_better else "lower is better"
    named = f"{measure.words} on own test examples"
    if measure.format == "number":
        return f"{textwrap.fill(named, AXIS)}\n({better})"
    unit = "(%)" if measure.higher_is_better else f"(%, {better})"
    return textwrap.fill(f"{named} {unit}", AXIS)


def number(value: float | None) -> str:
    """A loss or another plain number, to three decimals; a large one to three digits."""
    if value is None or not _known(value):
        return NOT_MEASURED
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3g}"


def byte_unit(largest: float) -> tuple[float, str]:
    """The decimal unit in which `largest` bytes read best: (1e6, 'MB')."""
    return next(
        ((size, name) for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if largest >= size), (1, "B")
    )


def amount(size: float | None) -> str:
    """4423680 -> '4.42 MB'."""
    if size is None or not _known(size):
        return NOT_MEASURED
    unit, name = byte_unit(size)
    return f"{size / unit:.3g} {name}" if size < 100 * unit else f"{size / unit:,.0f} {name}"


def duration(seconds: float | None) -> str:
    """134.2 -> '2 min 14 s'."""
    if seconds is None or not _known(seconds):
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(iso: str | None) -> str:
    """An ISO time stamp to the minute, with its zone; anything else as it is."""
    try:
        return datetime.fromisoformat(iso or "").strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return iso or NOT_MEASURED


def resumptions(environment: Row) -> str:
    """The moments at which a run was resumed; empty for one that never was."""
    breaks: list[Row] = environment.get("resumed") or []
    return "; ".join(f"after round {each['after_round']}, {moment(each['time'])}" for each in breaks)


def counted(how_many: int, noun: str, plural: str = "s") -> str:
    """(1, 'client') -> '1 client'; (10, 'client') -> '10 clients'."""
    return f"{how_many:,} {noun}{'' if how_many == 1 else plural}"


def listed(words: list[str]) -> str:
    """['a', 'b', 'c'] -> 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def roles(summary: Row, treatment: str) -> list[str]:
    """The names of the roles that the run's split treats as shared, local or frozen."""
    return [
        ROLE_NAMES.get(role, role) for role, given in split_of(summary).items() if given.startswith(treatment)
    ]


def split_of(summary: Row) -> Row:
    """The run's split by role, without roles of which the model has no parameter, such as the head of a model
    without one."""
    split: Row = summary.get("split") or {}
    parameters: Row = summary.get("parameters") or {}
    return {role: given for role, given in split.items() if parameters.get(role) != 0}


def verdict(summary: Row, measure: Measure) -> Verdict:
    """Compare the personalised models with the same clients trained alone."""
    if not summary:
        return Verdict("No result", "The run wrote no summary, so nothing can be compared.", "unknown")
    if summary.get("split") and not roles(summary, "shared"):
        return Verdict(
            "Nothing was shared", "In this run each client trained alone, as the reference.", "unknown"
        )
    gain, alone = summary.get("gain_over_local"), summary.get("local_only")
    if gain is None or not alone:
        text = "No reference was trained, so it is not known whether federation helped."
        return Verdict("Not measured", text, "unknown")
    ours = summary["personalised"]
    so = ": " if measure.higher_is_better else "; lower is better, so the gain is "
    answer, tone = _answer(summary.get("gain_interval"), _worst_falls(ours, alone, measure))
    text = (
        f"The mean over clients is {shown(ours['mean'], measure)} with federation and "
        f"{shown(alone['mean'], measure)} alone{so}{shown_gain(gain, measure)} "
        f"({between(summary, measure)}). The worst client reaches {shown(ours.get('worst'), measure)} with "
        f"federation; alone, the worst reaches {shown(alone.get('worst'), measure)}."
    )
    return Verdict(answer, text, tone)


def between(summary: Row, measure: Measure) -> str:
    """The interval in which the mean gain of clients such as these lies, and how many it was taken from."""
    interval, clients = summary.get("gain_interval"), summary.get("clients_compared")
    if clients is None:
        return "without an interval, which this version did not record"
    if interval is None:
        return f"{counted(clients, 'client')}: too few for an interval"
    low, high = (shown_gain(end, measure) for end in interval)
    return f"95% interval over {counted(clients, 'client')}: {without_unit(low)} to {high}"


def of_clients(summary: Row) -> str:
    """', 37 of 40 clients' where some were not measured, else nothing."""
    measured, clients = summary.get("measured"), summary.get("clients", 0)
    return "" if measured in (None, clients) else f", {measured} of {counted(clients, 'client')}"


def left_out(summary: Row) -> list[str]:
    """A line for each reason for which clients are not in the means of the last evaluation."""
    without, measured = summary.get("unmeasured", []), summary.get("measured")
    if measured is None:
        return []
    lines = []
    if without:
        lines.append(
            f"{counted(len(without), 'client')} without {summary['part']} examples took part like the others "
            f"and could not be measured: {listing(without)}."
        )
    if silent := summary["clients"] - measured - len(without):
        lines.append(f"{counted(silent, 'client')} did not answer the last evaluation.")
    return lines


def reached(summary: Row, measure: Measure) -> list[Reached]:
    """The models that were measured, the personalised one first."""
    return [_reached(key, summary, measure) for key in MODEL_NAMES if summary.get(key)]


def _reached(key: str, summary: Row, measure: Measure) -> Reached:
    figures: Row = summary[key]
    worst, who = shown(figures.get("worst"), measure), figures.get("worst_client")
    model, clients, ours = MODEL_NAMES[key], figures.get("clients"), summary.get("personalised") or {}
    if clients is not None and clients != ours.get("clients"):  # not all trained in the last round
        model += f" ({counted(clients, 'client')})"
    return Reached(
        model=model,
        mean=shown(figures.get("mean"), measure),
        weighted=shown(figures.get("weighted"), measure),
        worst=worst if who is None else f"{worst} (client {who})",
        ours=key == "personalised",
    )


def under_attack(attack: Row, measure: Measure) -> str:
    """Words what an attack achieved at those that had no part in it, beside what they reach without it."""
    return (
        f"With the trigger of clients {listed([str(client) for client in attack['clients']])}, "
        f"{percent(attack['success'])} of the examples of other classes are classified as class "
        f"{attack['target']} "
        f"by the other {counted(attack['honest'], 'client')}; without it their {measure.words} is "
        f"{shown(attack['clean'], measure)}."
    )


def _answer(interval: Sequence[float] | None, worst_falls: bool) -> tuple[str, str]:
    if interval is None:
        return "Not known", "even"
    if interval[0] <= 0 <= interval[1]:
        return "Not significantly different", "even"
    if interval[1] < 0:
        return "No", "bad"
    return ("On average, but not for the worst client", "even") if worst_falls else ("Yes", "good")


def _worst_falls(ours: Row, alone: Row, measure: Measure) -> bool:
    worst, worst_alone = ours.get("worst"), alone.get("worst")
    if worst is None or worst_alone is None:
        return False
    return measure.merit(worst) < measure.merit(worst_alone)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
