"""A regime as a picture: every method with its mean, its seeds and its worst client."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsa_lora.compare.scores import Score
from fedsa_lora.report.style import (
    LIGHT,
    FigureStyle,
    add_legend,
    blank,
    name_axes,
    show_measure,
    thin_ticks,
)
from fedsa_lora.report.wording import of_measure

MOST = 20.0  # inches


def draw(found: Sequence[Score], reference: str, style: FigureStyle = LIGHT) -> Figure:
    """One row for each method of a regime, the best on top; bold: no significant difference from it."""
    height = min(2.2 + 0.3 * len(found), MOST)
    fig, ax = blank(style, f"Methods compared: {found[0].regime}", height)
    upward = list(reversed(found))
    for score in upward:
        if score.method == reference:
            ax.axvline(
                score.mean, color=style.alone, linestyle="--", linewidth=1.6, label=f"mean of {reference}"
            )
    ax.scatter(
        [score.worst for score in upward], range(len(upward)), s=34, marker="D", facecolor=style.paper,
        edgecolor=style.down, linewidth=1.6, zorder=3, label="worst client of all seeds",
    )  # fmt: skip
    ax.scatter(
        [score.mean for score in upward], range(len(upward)), s=60, marker="o", facecolor=style.personalised,
        edgecolor=style.personalised, zorder=3, label="mean over clients and seeds",
    )  # fmt: skip
    ax.scatter(
        [mean for score in upward for mean in score.means],
        [row for row, score in enumerate(upward) for _ in score.means],
        s=12, marker="o", facecolor=style.paper, edgecolor=style.ink, linewidth=1, zorder=4,
        label="mean over clients, by seed",
    )  # fmt: skip
    thin_ticks(ax.yaxis, [style.short(score.method) for score in upward], len(upward))
    for label, score in zip(ax.get_yticklabels(), upward, strict=True):
        label.set_fontweight("bold" if score.level else "normal")
    ax.set_ylim(-0.7, len(upward) - 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    show_measure(ax.xaxis, found[0].measure)
    name_axes(ax, style, of_measure(found[0].measure), "method")
    add_legend(fig, ax, style)
    return fig
