"""The figures in which each client has a place: what it reaches, and its classes."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsa_lora.exchange.measure import Measure
from fedsa_lora.report.bands import add_bands
from fedsa_lora.report.style import (
    LIGHT,
    FigureStyle,
    add_legend,
    blank,
    name_axes,
    shade,
    show_measure,
    thin_ticks,
)
from fedsa_lora.report.wording import of_measure, shown
from fedsa_lora.runs.outcomes import ClientOutcome, in_order
from fedsa_lora.runs.reading import Row

FEW_CLIENTS = 12  # as many single lines as an eye can follow
CROWDED = 30  # more clients or classes than this need the full width
CROWDED_HEIGHT = 4.6  # inches
MOST_BANDS = 200  # clients that a pointer can still tell apart
NAMED_CLASSES = 7


def clients_before_and_after(
    outcomes: list[ClientOutcome], measure: Measure, style: FigureStyle = LIGHT
) -> Figure:
    """One row per client, from what it reaches alone to that in the federation; largest gain on top. Of many
    clients one column each, largest gain on the right, so that all are on one screen."""
    found = sorted((o for o in outcomes if o.personalised is not None), key=_by_gain)
    title = "Each client alone and in the federation"
    if len(found) > CROWDED:
        fig, ax = blank(style, title, CROWDED_HEIGHT, crowded=True)
        _draw_clients(ax, found, style, upright=True)
        thin_ticks(ax.xaxis, [style.short(o.client) for o in found], 12 if style.narrow else 34, tilt=90)
        show_measure(ax.yaxis, measure)
        name_axes(ax, style, "client, by gain", of_measure(measure))
    else:
        fig, ax = blank(style, title, 2.2 + 0.26 * len(found))
        _draw_clients(ax, found, style, upright=False)
        thin_ticks(ax.yaxis, [_named(o, style) for o in found], 110)
        show_measure(ax.xaxis, measure)
        name_axes(ax, style, of_measure(measure), "client, by gain")
    if len(found) <= MOST_BANDS:
        words = [(row, _words(outcome, measure)) for row, outcome in enumerate(found)]
        add_bands(ax, words, upright=len(found) > CROWDED)
    add_legend(fig, ax, style)
    return fig


def _draw_clients(ax: Axes, shown: list[ClientOutcome], style: FigureStyle, upright: bool) -> None:
    """The marks of each client, and a line between them; values go up where it is ``upright``."""
    for row, outcome in enumerate(shown):
        if outcome.local_only is not None and outcome.personalised is not None:
            ends, place = [outcome.local_only, outcome.personalised], [row, row]
            ax.plot(
                *((place, ends) if upright else (ends, place)),
                ":" if outcome.harmed else "-",
                color=style.alone if outcome.harmed else style.personalised,
                linewidth=2 if len(shown) <= CROWDED else 1.2,
                alpha=0.7,
            )
    mark = partial(_mark, ax, upright=upright)
    mark(shown, "majority", "D", style.muted, "majority class", style.muted)
    mark(shown, "local_only", "o", style.alone, "alone (local-only)", style.paper)
    helped = [outcome if not outcome.harmed else None for outcome in shown]
    mark(helped, "personalised", "o", style.personalised, "federated, personalised", style.personalised)
    harmed = [outcome if outcome.harmed else None for outcome in shown]
    mark(harmed, "personalised", "v", style.ink, "federated, harmed: worse than alone", style.ink)
    low, high = -0.7, len(shown) - 0.3
    if upright:
        ax.set_xlim(low, high)
    else:
        ax.set_ylim(low, high)


def classes_by_client(partition: Row, style: FigureStyle = LIGHT) -> Figure:
    """Counts of each client's train examples by class; blank where it has none."""
    shares: Row = partition["clients"]
    names = in_order(shares)
    counts = np.array([shares[name]["classes"] for name in names], dtype=float).T
    labels = [str(label) for label in partition.get("labels", [])]
    labels += [str(n) for n in range(len(labels), len(counts))]
    crowded = len(names) > CROWDED or len(labels) > CROWDED
    fig, ax = blank(style, "Classes by client", float(np.clip(2.3 + 0.24 * len(labels), 3.5, 12)), crowded)
    ax.grid(False)
    image = shade(ax, np.ma.masked_equal(counts, 0))
    thin_ticks(ax.xaxis, [style.short(name) for name in names], 12 if style.narrow else 34, tilt=_tilt(names))
    thin_ticks(ax.yaxis, [style.short(label) for label in labels], 70)
    if len(names) <= FEW_CLIENTS and len(labels) <= FEW_CLIENTS:
        _write_counts(ax, counts, style)
    name_axes(ax, style, "client", "class")
    bar = fig.colorbar(image, ax=ax, location="bottom", shrink=0.6, aspect=35)
    bar.set_label("train examples (count); blank: none", color=style.ink, fontsize=style.text)
    bar.ax.tick_params(colors=style.muted, labelcolor=style.ink, labelsize=style.text - 0.5)
    bar.ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    bar.outline.set_visible(False)
    for cells in bar.ax.collections:
        cells.set_visible(False)  # they know one colour scheme only
    if len(names) <= MOST_BANDS:
        words = [_classes_words(name, column, labels) for name, column in zip(names, counts.T, strict=True)]
        add_bands(ax, list(enumerate(words)))
    shade(bar.ax, np.linspace(0, counts.max(), 256)[None], extent=(0, counts.max(), 0, 1))
    return fig


def _named(outcome: ClientOutcome, style: FigureStyle) -> str:
    name = style.short(outcome.client)
    return f"harmed ▼ {name}" if outcome.harmed else name


def _words(outcome: ClientOutcome, measure: Measure) -> str:
    values = (
        ("federated", outcome.personalised),
        ("alone", outcome.local_only),
        ("majority class", outcome.majority),
    )
    told = [f"{name} {shown(value, measure)}" for name, value in values if value is not None]
    return f"client {outcome.client}: {', '.join(told)}{'; harmed' if outcome.harmed else ''}"


def _classes_words(client: str, counts: np.ndarray, labels: list[str]) -> str:
    """The largest classes of a client, with their numbers of train examples."""
    held = [int(n) for n in np.argsort(-counts, kind="stable") if counts[n]]
    told = [f"{labels[n]}: {counts[n]:g}" for n in held[:NAMED_CLASSES]]
    if len(held) > NAMED_CLASSES:
        told.append(f"{len(held) - NAMED_CLASSES} more classes")
    return f"client {client}, {', '.join(told)}"


def _mark(
    ax: Axes,
    outcomes: Sequence[ClientOutcome | None],
    key: str,
    marker: str,
    colour: str,
    label: str,
    fill: str,
    upright: bool,
) -> None:
    """One kind of mark for each client that has that value."""
    known = [(getattr(o, key), row) for row, o in enumerate(outcomes) if o and getattr(o, key) is not None]
    if known:
        values, rows = zip(*known, strict=True)
        size = 20 if marker == "D" else 44
        ax.scatter(
            *((rows, values) if upright else (values, rows)),
            s=size * min(1, max(0.15, CROWDED / len(outcomes))),
            marker=marker,
            facecolor=fill,
            edgecolor=colour,
            linewidth=1.6 if len(outcomes) <= CROWDED else 0.8,
            zorder=3,
            label=label,
        )


def _by_gain(outcome: ClientOutcome) -> tuple[float, float]:
    return (outcome.gain or 0.0, outcome.personalised or 0.0)


def _tilt(names: list[str]) -> int:
    return 0 if max(map(len, names)) <= 3 else 90


def _write_counts(ax: Axes, counts: np.ndarray, style: FigureStyle) -> None:
    """The count in each cell, in the colour that its background lets stand out: many is far from paper."""
    for (row, column), count in np.ndenumerate(counts):
        if count:
            ax.text(
                column,
                row,
                f"{count:g}",
                ha="center",
                va="center",
                fontsize=style.text - 1.5,
                color=style.paper if count > 0.5 * counts.max() else style.ink,
            )
