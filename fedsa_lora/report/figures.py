"""The four figures of a run, each a function from what was recorded to a matplotlib Figure."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedsa_lora.errors import RunError
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.files import write_atomically
from fedsa_lora.report.style import (
    LIGHT,
    FigureStyle,
    add_legend,
    blank,
    name_axes,
    shade,
    show_measure,
    spread,
    thin_ticks,
    to_png,
)
from fedsa_lora.report.wording import amount, byte_unit, of_measure, shown
from fedsa_lora.runs.outcomes import ClientOutcome, client_outcomes, in_order
from fedsa_lora.runs.reading import Row, RunRecord, read_run

FEW_CLIENTS = 12  # as many single lines as an eye can follow
CROWDED = 30  # more clients or classes than this need the full width


def measure_by_round(
    rounds: list[Row], clients: list[Row], summary: Row, measure: Measure, style: FigureStyle = LIGHT
) -> Figure:
    """Mean measure on own test examples, the spread over clients, and both references without federation."""
    fig, ax = blank(style, f"Personalised {measure.words} by round", 3.7)
    _draw_spread(ax, clients, measure, style)
    labels = [
        _draw_mean(ax, rounds, measure.name, "mean of clients", style.personalised, "-o"),
        _draw_mean(ax, rounds, measure.of_global, "global model", style.down, "-s"),
    ]
    references = (
        ("local_only", "alone", style.alone, "--"),
        ("majority", "majority class", style.muted, ":"),
    )
    for key, name, colour, dashes in references:
        if summary.get(key):
            mean = summary[key]["mean"]
            ax.axhline(mean, color=colour, linestyle=dashes, linewidth=1.8)
            labels.append((mean, name, colour))
    name_axes(ax, style, "round", of_measure(measure))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    show_measure(ax.yaxis, measure)
    _label_ends(ax, [label for label in labels if label is not None], measure, style)
    add_legend(fig, ax, style)
    return fig


def clients_before_and_after(
    outcomes: list[ClientOutcome], measure: Measure, style: FigureStyle = LIGHT
) -> Figure:
    """One row per client, from what it reaches alone to that in the federation; largest gain on top."""
    shown = sorted((o for o in outcomes if o.personalised is not None), key=_by_gain)
    crowded = len(shown) > CROWDED
    height = min(2.2 + (0.16 if crowded else 0.26) * len(shown), 20)
    fig, ax = blank(style, "Each client alone and in the federation", height, crowded)
    for row, outcome in enumerate(shown):
        if outcome.local_only is not None and outcome.personalised is not None:
            colour = style.alone if outcome.harmed else style.personalised
            line = ":" if outcome.harmed else "-"
            ax.plot(
                [outcome.local_only, outcome.personalised],
                [row, row],
                line,
                color=colour,
                linewidth=2,
                alpha=0.7,
            )
    _mark(ax, shown, "majority", "D", style.muted, "majority class", style.muted)
    _mark(ax, shown, "local_only", "o", style.alone, "alone (local-only)", style.paper)
    helped = [outcome if not outcome.harmed else None for outcome in shown]
    _mark(ax, helped, "personalised", "o", style.personalised, "federated, personalised", style.personalised)
    harmed = [outcome if outcome.harmed else None for outcome in shown]
    _mark(ax, harmed, "personalised", "v", style.ink, "federated, harmed: worse than alone", style.ink)
    names = [f"harmed ▼ {style.short(o.client)}" if o.harmed else style.short(o.client) for o in shown]
    thin_ticks(ax.yaxis, names, 110)
    ax.set_ylim(-0.7, len(shown) - 0.3)
    show_measure(ax.xaxis, measure)
    name_axes(ax, style, of_measure(measure), "client, by gain")
    add_legend(fig, ax, style)
    return fig


def classes_by_client(partition: Row, style: FigureStyle = LIGHT) -> Figure:
    """Counts of each client's train examples by class; blank where it has none."""
    shares: Row = partition["clients"]
    names = in_order(shares)
    counts = np.array([shares[name]["classes"] for name in names], dtype=float).T
    labels = [str(label) for label in partition.get("labels", [])] or [str(n) for n in range(len(counts))]
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
    shade(bar.ax, np.linspace(0, counts.max(), 256)[None], extent=(0, counts.max(), 0, 1))
    return fig


def bytes_by_round(rounds: list[Row], summary: Row, style: FigureStyle = LIGHT) -> Figure:
    """Bytes sent up and down since the start, and what FedIT, which sends A and B, would have sent up."""
    fig, ax = blank(style, "Bytes sent since the start", 3.7)
    numbers = [row["round"] for row in rounds]
    up = list(accumulate(row.get("bytes_up") or 0 for row in rounds))
    down = list(accumulate(row.get("bytes_down") or 0 for row in rounds))
    lines = [
        (up, "up, clients to server", style.personalised, "-o"),
        (down, "down, server to clients", style.down, "-s"),
    ]
    if summary.get("bytes_up_share_ab") and not summary.get("step_bytes"):
        each = summary["bytes_up_share_ab"]
        fedit = list(accumulate(each * (row.get("fit_clients") or 0) for row in rounds))
        lines.append((fedit, "up, if B travelled too (FedIT)", style.alone, "--"))
    unit, unit_name = byte_unit(max(line[-1] for line, *_ in lines))
    for line, name, colour, dashes in lines:
        ax.plot(
            numbers, line, dashes, color=colour, label=f"{name}: {amount(line[-1])}", **_line(len(numbers))
        )
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / unit:g}"))
    name_axes(ax, style, "round", f"sum over all clients ({unit_name})")
    add_legend(fig, ax, style)
    return fig


def draw(record: RunRecord, style: FigureStyle = LIGHT) -> dict[str, Figure]:
    """Every figure for which the run recorded something, by name."""
    figures = {}
    outcomes, primary = client_outcomes(record), record.primary
    if any(row.get(primary.name) is not None for row in record.rounds):
        figures[f"{primary.name}_by_round"] = measure_by_round(
            record.rounds, record.clients, record.summary, primary, style
        )
    if any(outcome.personalised is not None for outcome in outcomes):
        figures["clients_before_and_after"] = clients_before_and_after(outcomes, primary, style)
    if any(any(share.get("classes", [])) for share in record.partition.get("clients", {}).values()):
        figures["classes_by_client"] = classes_by_client(record.partition, style)
    if record.rounds:
        figures["bytes_by_round"] = bytes_by_round(record.rounds, record.summary, style)
    return figures


def draw_all(run_dir: Path) -> dict[str, Figure]:
    """Draw what the run recorded into `figures/`, `NAME.png` each; the figures by name, for the report.

    Raises RunError if the folder cannot be made or a file cannot be written.
    """
    record = read_run(run_dir)
    folder = run_dir / "figures"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error.strerror}; check space and permissions") from error
    figures = draw(record)
    for name, fig in figures.items():
        write_atomically(folder / f"{name}.png", to_png(fig))
    return figures


Label = tuple[float, str, str]


def _line(length: int) -> dict[str, Any]:
    """Markers on each point of a short line; none where they would merge into a band."""
    return {"linewidth": 2, "markersize": 4, "markevery": max(1, length // 20)}


def _draw_mean(ax: Axes, rounds: list[Row], key: str, name: str, colour: str, line: str) -> Label | None:
    known = [(row["round"], row[key]) for row in rounds if row.get(key) is not None]
    if not known:
        return None
    ax.plot(*zip(*known, strict=True), line, color=colour, zorder=3, **_line(len(known)))
    return known[-1][1], name, colour


def _draw_spread(ax: Axes, clients: list[Row], measure: Measure, style: FigureStyle) -> None:
    """The band from worst to best client and, where they can be told apart, each client."""
    by_round, by_client = defaultdict(list), defaultdict(list)
    for row in clients:
        if row["phase"] == "evaluate" and row.get(measure.name) is not None:
            by_round[row["round"]].append(row[measure.name])
            by_client[row["client"]].append((row["round"], row[measure.name]))
    if len(by_client) < 2:
        return
    when = sorted(by_round)
    low, high = [min(by_round[n]) for n in when], [max(by_round[n]) for n in when]
    ax.fill_between(
        when, low, high, color=style.personalised, alpha=0.15, linewidth=0, label="worst to best client"
    )
    if len(by_client) <= FEW_CLIENTS:
        for number, line in enumerate(by_client.values()):
            label = "each client" if number == 0 else None
            ax.plot(
                *zip(*line, strict=True), color=style.personalised, alpha=0.35, linewidth=0.8, label=label
            )


def _label_ends(ax: Axes, labels: list[Label], measure: Measure, style: FigureStyle) -> None:
    """Name the lines at their right end, where no legend has to be looked up."""
    low, high = ax.get_ylim()
    for (value, name, colour), height in zip(
        labels, spread([value for value, *_ in labels], 0.15 * (high - low)), strict=True
    ):
        text = f"{name}\n{shown(value, measure)}"
        ax.annotate(
            text,
            (1.0, value),
            xytext=(1.02, (height - low) / (high - low)),
            xycoords=ax.get_yaxis_transform(),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=style.text - 0.5,
            fontweight="bold",
        )


def _mark(
    ax: Axes,
    outcomes: Sequence[ClientOutcome | None],
    key: str,
    marker: str,
    colour: str,
    label: str,
    fill: str,
) -> None:
    """One kind of mark in each row whose client has that value."""
    known = [(getattr(o, key), row) for row, o in enumerate(outcomes) if o and getattr(o, key) is not None]
    if known:
        ax.scatter(
            [value for value, _ in known],
            [row for _, row in known],
            s=20 if marker == "D" else 44,
            marker=marker,
            facecolor=fill,
            edgecolor=colour,
            linewidth=1.6,
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
