"""Numbers and results in words, the same on the screen and in the report."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from fedsa_lora.exchange.measure import Measure
from fedsa_lora.runs.reading import Row
from fedsa_lora.suggest import listing

NOT_MEASURED = "–"  # noqa: RUF001
DENSE = "dense fp32"  # the codec that sends every value as it is
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
CAUTION = (
    "This is data minimisation, not a privacy guarantee: what is sent was trained on the client's data "
    "and can still tell something about it."
)


@dataclass(frozen=True)
class Reached:
    """What one kind of model reaches over all clients, as text."""

    model: str
    mean: str
    weighted: str
    worst: str
    ours: bool


@dataclass(frozen=True)
class Verdict:
    """Whether federation was better than training alone: a short answer, a sentence, and its tone."""

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
    """The measure with its unit, as an axis has it: 'accuracy on own test examples (%)'."""
    unit = "%" if measure.format == "percent" else "higher is better"
    if not measure.higher_is_better:
        unit = "%, lower is better" if measure.format == "percent" else "lower is better"
    return f"{measure.words} on own test examples ({unit})"


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


def counted(how_many: int, noun: str, plural: str = "s") -> str:
    """(1, 'client') -> '1 client'; (10, 'client') -> '10 clients'."""
    return f"{how_many:,} {noun}{'' if how_many == 1 else plural}"


def listed(words: list[str]) -> str:
    """['a', 'b', 'c'] -> 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def rounds_of(numbers: list[int]) -> str:
    """Ascending: [3] -> 'round 3'; [1, 2, 3, 7] -> 'rounds 1 to 3 and 7'."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][-1] + 1:
            spans[-1].append(n)
        else:
            spans.append([n])
    words = [str(span[0]) if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans]
    return f"round{'' if len(numbers) == 1 else 's'} {listed(words)}"


def absences(rounds: list[Row], clients: int) -> list[str]:
    """Which rounds were skipped, who was left out of which, and when clients were not there."""
    lines = []
    if skipped := [row["round"] for row in rounds if row.get("skipped")]:
        lines.append(f"Skipped for too few results, what is common staying as it was: {rounds_of(skipped)}.")
    left_out, fewer = defaultdict[str, list[int]](list), defaultdict[int, list[int]](list)
    for row in rounds:
        for client in row.get("excluded") or []:
            left_out[client].append(row["round"])
        if row.get("present", clients) < clients:
            fewer[row["present"]].append(row["round"])
    lines += [
        f"Client {client} was left out of {rounds_of(numbers)}: it kept failing."
        for client, numbers in sorted(left_out.items())
    ]
    lines += [
        f"In {rounds_of(numbers)}, {there} of {counted(clients, 'client')} were there."
        for there, numbers in fewer.items()
    ]
    return lines


def naming(federation: Row) -> list[str]:
    """How far the names of a deployed run's clients can be trusted; nothing of a simulation."""
    if not federation.get("superlink"):
        return []
    if federation.get("registry"):
        return ["A client is the node that has its key: names were checked by the registry in every round."]
    return [
        "A client is whoever says its name first: without federation.registry no key was asked for, so names "
        "are claims of the nodes."
    ]


def roles(summary: Row, treatment: str) -> list[str]:
    """The names of the roles that the run's split treats as shared, local or frozen."""
    split: Row = summary.get("split") or {}
    return [ROLE_NAMES.get(role, role) for role, given in split.items() if given.startswith(treatment)]


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
        text = "No reference was trained, so this run cannot say whether federation helped."
        return Verdict("Not measured", text, "unknown")
    ours = summary["personalised"]
    answer, tone = _answer(summary.get("gain_interval"), _worst_falls(ours, alone, measure))
    text = (
        f"The mean over clients is {shown(ours['mean'], measure)} with federation and "
        f"{shown(alone['mean'], measure)} alone{_direction(measure)}: {shown_gain(gain, measure)} "
        f"({between(summary, measure)}). The worst client reaches {shown(ours.get('worst'), measure)} with "
        f"federation; alone, the worst reaches {shown(alone.get('worst'), measure)}."
    )
    return Verdict(answer, text, tone)


def _direction(measure: Measure) -> str:
    return "" if measure.higher_is_better else ", and lower is better"


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
        lines.append(f"{counted(silent, 'client')} gave no answer to the last evaluation.")
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
    """What an attack achieved at those that had no part in it, beside what they reach without it."""
    return (
        f"With the trigger of clients {listed([str(client) for client in attack['clients']])}, "
        f"{percent(attack['success'])} of the examples of other classes are called class {attack['target']} "
        f"by the other {counted(attack['honest'], 'client')}; without it their {measure.words} is "
        f"{shown(attack['clean'], measure)}."
    )


def cost(summary: Row) -> list[str]:
    """What the run sent, and what FedIT, which also sends B, would have sent."""
    each, fedit = summary.get("bytes_up_per_client_round"), summary.get("bytes_up_share_ab")
    lines = [
        f"{amount(summary.get('bytes_up'))} up and {amount(summary.get('bytes_down'))} down, "
        f"{counted(summary.get('rounds', 0), 'round')} with {counted(summary.get('clients', 0), 'client')}, "
        f"in {duration(summary.get('seconds'))}.",
    ]
    if each:
        coded = summary.get("codec") or DENSE
        lines.append(
            f"A client sends {amount(each)} per round{'' if coded == DENSE else f', coded as {coded}'}."
        )
    if each and fedit and fedit > each:
        lines.append(
            f"FedIT, which sends A and B uncoded, would send {amount(fedit)}: {fedit / each:.1f} times that."
        )
    if error := summary.get("aggregation_error"):
        lines.append(
            f"The mean A times the mean B misses the mean of the products B A by {error:.1%} (last round)."
        )
    return lines


def what_left(summary: Row) -> list[str]:
    """What left the clients, what was checked about it, and what that does not prove."""
    shared, local = roles(summary, "shared"), roles(summary, "local")
    if not shared:
        return ["Nothing: this split shares no part of the model."]
    sent = f"Only {listed(shared)}" if local else _capital(listed(shared))
    lines = [f"{sent}{_share_of_all(summary.get('parameters') or {})}."]
    if warning := summary.get("warning"):
        lines.append(f"Warning: {warning}. {_capital(listed(local))} went on to the next client.")
    elif local:
        lines.append(f"{_capital(listed(local))} stayed on each client.")
    lines += _proof(summary.get("proof") or {}, several=summary.get("clients") != 1)
    return [*lines, CAUTION]


def _share_of_all(parameters: Row) -> str:
    sent, every = parameters.get("shared"), sum(parameters.get(role) or 0 for role in ROLE_NAMES)
    return f", {sent:,} of {every:,} parameters ({sent / every:.2%})" if sent and every else ""


def _proof(proof: Row, several: bool) -> list[str]:
    lines = []
    if private := proof.get("private_values"):
        place = f"{counted(proof['messages'], 'message')} ({amount(proof.get('bytes_searched'))})"
        found = proof["matches"]
        lines.append(
            f"Warning: {counted(found, 'private value')} found in {place}."
            if found
            else f"Checked: {place} searched, each for up to {private:,} private values; 0 found."
        )
    if breaks := proof.get("chain_breaks"):
        lines.append(f"Warning: {breaks:,} times a client did not go on from its own state.")
    elif breaks == 0:
        lines.append("Checked: each client went on from its own state in every round.")
    if several and proof.get("distinct_b") is not None:
        lines.append(
            "Checked: no two clients ended with the same B."
            if proof["distinct_b"]
            else "Warning: at least two clients ended with the same B."
        )
    return lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _answer(interval: Sequence[float] | None, worst_falls: bool) -> tuple[str, str]:
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "Cannot be told", "even"
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
