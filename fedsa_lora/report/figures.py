"""The four figures of a run, each a function from what was recorded to a matplotlib Figure."""

from collections import defaultdict
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedsa_lora.errors import RunError
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.files import write_atomically
from fedsa_lora.report.bands import add_bands, kept
from fedsa_lora.report.figures_of_clients import FEW_CLIENTS, classes_by_client, clients_before_and_after
from fedsa_lora.report.style import (
    LIGHT,
    FigureStyle,
    add_legend,
    blank,
    name_axes,
    show_measure,
    spread,
    to_png,
)
from fedsa_lora.report.wording import amount, byte_unit, of_measure, shown
from fedsa_lora.runs.outcomes import client_outcomes
from fedsa_lora.runs.reading import Row, RunRecord, read_run


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
    _add_values(ax, rounds, measure)
    add_legend(fig, ax, style)
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
    if each := summary.get("bytes_up_share_ab"):
        fedit = list(accumulate(each * (row.get("fit_clients") or 0) for row in rounds))
        lines.append((fedit, "up, if B were sent too (FedIT)", style.alone, "--"))
    unit, unit_name = byte_unit(max(line[-1] for line, *_ in lines))
    for line, name, colour, dashes in lines:
        ax.plot(
            numbers, line, dashes, color=colour, label=f"{name}: {amount(line[-1])}", **_line(len(numbers))
        )
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / unit:g}"))
    name_axes(ax, style, "round", f"sum over all clients ({unit_name})")
    sent = [f"round {n}: {amount(a)} up, {amount(b)} down" for n, a, b in zip(numbers, up, down, strict=True)]
    add_bands(ax, kept(list(zip(numbers, sent, strict=True))))
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


def _add_values(ax: Axes, rounds: list[Row], measure: Measure) -> None:
    """Name the mean and the worst client of each round that was evaluated."""
    words = []
    for row in rounds:
        if row.get(measure.name) is None:
            continue
        text = f"round {row['round']}: mean of clients {shown(row[measure.name], measure)}"
        if row.get(measure.worst) is not None:
            text += f", worst client {shown(row[measure.worst], measure)}"
        if row.get(measure.of_global) is not None:
            text += f", global model {shown(row[measure.of_global], measure)}"
        words.append((row["round"], text))
    add_bands(ax, kept(words))


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
