"""The figures as a report embeds them: a picture for each kind of screen, a caption, a text instead."""

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from fedsa_lora.runs.figure_style import DARK, LIGHT, to_png
from fedsa_lora.runs.figures import draw
from fedsa_lora.runs.outcomes import client_outcomes
from fedsa_lora.runs.reading import RunRecord
from fedsa_lora.runs.wording import amount, counted, listed, shown

PHONE, NIGHT = "(max-width: 640px)", "(prefers-color-scheme: dark)"
SCREENS = {  # a browser takes the first that fits
    f"{PHONE} and {NIGHT}": replace(DARK, narrow=True),
    PHONE: replace(LIGHT, narrow=True),
    NIGHT: DARK,
}


@dataclass(frozen=True)
class Source:
    """A picture for the screens that a media query describes."""

    media: str
    image: str


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure in HTML: pictures as data URIs, and what to see in them."""

    image: str
    sources: list[Source]
    alt: str
    caption: str
    full: bool


def embedded_figures(record: RunRecord) -> list[EmbeddedFigure]:
    """All figures of a run, ready for the page."""
    elsewhere = {media: draw(record, style) for media, style in SCREENS.items()}
    words = {f"{record.primary.name}_by_round": _rounds_words, **WORDS}
    embedded = []
    for name, fig in draw(record, LIGHT).items():
        alt, caption = words[name](record)
        sources = [Source(media, _data_uri(figures[name])) for media, figures in elsewhere.items()]
        crowded = bool(fig.get_figwidth() > LIGHT.width())
        embedded.append(EmbeddedFigure(_data_uri(fig), sources, alt, caption, crowded))
    return embedded


def _data_uri(fig: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(to_png(fig)).decode("ascii")


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
            f" Federation pays where the line is {side} the dashed one, the same clients trained alone."
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
    caption = "From what a client reaches alone to what it reaches in the federation, largest gain on top."
    if harmed:
        caption += " A triangle and the word “harmed” mark a client that would be better off alone."
    return alt, caption


def _classes_words(record: RunRecord) -> tuple[str, str]:
    shares = record.partition["clients"].values()
    held = [sum(count > 0 for count in share["classes"]) for share in shares]
    classes = max(len(share["classes"]) for share in shares)
    spread = f"{min(held)} to {max(held)}" if min(held) < max(held) else f"{held[0]}"
    size = f"{counted(classes, 'class', 'es')} by {counted(len(held), 'client')}"
    alt = f"Heat map of train examples: {size}; a client holds {spread}."
    if min(held) == classes:
        return alt, f"Every client holds all {counted(classes, 'class', 'es')}, in the numbers shown."
    caption = f"How unlike the clients are: of {counted(classes, 'class', 'es')} a client holds {spread}."
    return alt, f"{caption} A blank cell is a class on which it is not trained."


def _bytes_words(record: RunRecord) -> tuple[str, str]:
    up, down = (sum(row.get(key) or 0 for row in record.rounds) for key in ("bytes_up", "bytes_down"))
    alt = f"Line chart: {amount(up)} up and {amount(down)} down after {counted(len(record.rounds), 'round')}."
    caption = "Everything sent so far, all clients together, as measured on the messages."
    if record.summary.get("bytes_up_share_ab"):
        caption += " Dashed: the upload if B were sent as well as A."
    return alt, caption


WORDS: dict[str, Callable[[RunRecord], tuple[str, str]]] = {
    "clients_before_and_after": _clients_words,
    "classes_by_client": _classes_words,
    "bytes_by_round": _bytes_words,
}
