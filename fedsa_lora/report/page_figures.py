"""The figures as a report embeds them: drawn for a wide and a narrow page, a caption, a text instead."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

from markupsafe import Markup
from matplotlib.figure import Figure

from fedsa_lora.exchange.measure import CLASSES
from fedsa_lora.report.chart import Line, chart
from fedsa_lora.report.figures import draw
from fedsa_lora.report.figures_of_clients import CROWDED
from fedsa_lora.report.style import LIGHT
from fedsa_lora.report.svg import to_svg
from fedsa_lora.report.wording import amount, counted, listed, number, shown
from fedsa_lora.runs.outcomes import client_outcomes
from fedsa_lora.runs.reading import RunRecord

LOSS = next(measure for measure in CLASSES if measure.name == "loss")


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure in HTML: an SVG for each layout, of which a page shows one, and what to see in them."""

    pictures: list[Markup]
    alt: str
    caption: str
    full: bool


def embedded_figures(record: RunRecord, figures: dict[str, Figure] | None = None) -> list[EmbeddedFigure]:
    """All figures of a run, ready for the page; `figures` are those for a wide one, where they are drawn."""
    wide = figures or draw(record)
    drawn = {"wide": wide, "narrow": draw(record, replace(LIGHT, narrow=True))}
    words = {f"{record.primary.name}_by_round": _rounds_words, **WORDS}
    embedded = []
    for name, fig in wide.items():
        alt, caption = words[name](record)
        pictures = [Markup(to_svg(by_name[name], name, layout)) for layout, by_name in drawn.items()]
        crowded = bool(fig.get_figwidth() > LIGHT.width())
        embedded.append(EmbeddedFigure(pictures, alt, caption, crowded))
    if loss := loss_figure(record):
        embedded.append(loss)
    return embedded


def loss_figure(record: RunRecord) -> EmbeddedFigure | None:
    """The losses of a run by round; None of one that recorded none."""
    training = [(row["round"], row["loss"]) for row in record.rounds if _finite(row.get("loss"))]
    by_round = defaultdict(list)
    for row in record.clients:
        if row["phase"] == "evaluate" and _finite(row.get("loss")):
            by_round[row["round"]].append(row["loss"])
    testing = [(when, fmean(losses)) for when, losses in sorted(by_round.items())]
    if not training and not testing:
        return None
    lines = [Line("training", training, "alone", "8 4"), Line("test examples", testing, "personalised")]
    ends = [
        f"{line.name} {number(line.points[0][1])} in round {line.points[0][0]} and "
        f"{number(line.points[-1][1])} in round {line.points[-1][0]}"
        for line in lines
        if line.points
    ]
    caption = "Mean over clients: while they train, and of their models on their own test examples."
    pictures = chart("Loss by round", lines, LOSS)
    return EmbeddedFigure(pictures, f"Line chart of the loss: {'; '.join(ends)}.", caption, full=False)


def _finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


def _rounds_words(record: RunRecord) -> tuple[str, str]:
    primary = record.primary
    known = [row for row in record.rounds if row.get(primary.name) is not None]
    first, last = known[0], known[-1]
    alt = (
        f"Line chart: the mean {primary.words} of the clients is {shown(first[primary.name], primary)} "
        f"in round {first['round']} "
        f"and {shown(last[primary.name], primary)} in round {last['round']}."
    )
    caption = "The thick line is the mean over clients after aggregation."
    if len({row["client"] for row in record.clients}) > 1:
        caption += " The band runs from the worst client to the best."
    if alone := record.summary.get("local_only"):
        alt += f" Alone, the clients reach {shown(alone['mean'], primary)}."
        side = "above" if primary.higher_is_better else "below"
        caption += (
            f" Federation helps where the line is {side} the dashed one, the same clients trained alone."
        )
    return alt, caption


def _clients_words(record: RunRecord) -> tuple[str, str]:
    outcomes = [outcome for outcome in client_outcomes(record) if outcome.personalised is not None]
    compared = [outcome for outcome in outcomes if outcome.gain is not None]
    if not compared:
        alt = f"Dot plot of the {record.primary.words} of {counted(len(outcomes), 'client')}."
        return alt, "One row per client. No reference was trained alone, so gains are not known."
    harmed = [outcome.client for outcome in compared if outcome.harmed]
    named = f": {listed(harmed)}" if 0 < len(harmed) <= 10 else ""
    number = f"{len(harmed)} worse off federated{named}"
    alt = f"Dot plot of {counted(len(compared), 'client')}, alone and federated; {number}."
    side = "on the right" if len(outcomes) > CROWDED else "on top"
    caption = f"Each client trained alone and in the federation, largest gain {side}."
    if harmed:
        marked = "A triangle marks" if len(outcomes) > CROWDED else "A triangle and the word “harmed” mark"
        caption += f" {marked} a client that would be better off alone."
    return alt, caption


def _classes_words(record: RunRecord) -> tuple[str, str]:
    shares = record.partition["clients"].values()
    held = [sum(count > 0 for count in share["classes"]) for share in shares]
    classes = max(len(share["classes"]) for share in shares)
    spread = f"{min(held)} to {max(held)}" if min(held) < max(held) else f"{held[0]}"
    size = f"{counted(classes, 'class', 'es')} by {counted(len(held), 'client')}"
    alt = f"Heat map of train examples: {size}; a client holds {spread}."
    if min(held) == classes:
        return alt, f"Every client holds all {counted(classes, 'class', 'es')}, in the counts shown."
    caption = f"Heterogeneity of the clients: of {counted(classes, 'class', 'es')} a client holds {spread}."
    return alt, f"{caption} A blank cell is a class on which it is not trained."


def _bytes_words(record: RunRecord) -> tuple[str, str]:
    up, down = (sum(row.get(key) or 0 for row in record.rounds) for key in ("bytes_up", "bytes_down"))
    alt = f"Line chart: {amount(up)} up and {amount(down)} down after {counted(len(record.rounds), 'round')}."
    caption = "Bytes sent so far by and to all clients, measured on the messages."
    if record.summary.get("bytes_up_share_ab"):
        caption += " Dashed: the upload if B were sent as well as A."
    return alt, caption


WORDS: dict[str, Callable[[RunRecord], tuple[str, str]]] = {
    "clients_before_and_after": _clients_words,
    "classes_by_client": _classes_words,
    "bytes_by_round": _bytes_words,
}
