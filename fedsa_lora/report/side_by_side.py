"""A page on two runs side by side: settings that differ, what each reached, and the difference by client."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedsa_lora.errors import RunError
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.files import write_atomically
from fedsa_lora.report.chart import Line, chart
from fedsa_lora.report.page import filled, run_title
from fedsa_lora.report.page_figures import LOSS, EmbeddedFigure
from fedsa_lora.report.page_tables import Cell, Table, TableRow, gained, measured, texts
from fedsa_lora.report.recorded_config import differences, settings_of
from fedsa_lora.report.template import SIDE_BY_SIDE
from fedsa_lora.report.wording import (
    NOT_MEASURED,
    Verdict,
    amount,
    counted,
    duration,
    moment,
    resumptions,
    shown,
    shown_gain,
    without_unit,
)
from fedsa_lora.runs import changed_data
from fedsa_lora.runs.measures import gains, interval
from fedsa_lora.runs.outcomes import client_outcomes, in_order
from fedsa_lora.runs.reading import REPORT, Row, RunRecord, read_run

Values = dict[str, float]  # of the primary measure, by client


@dataclass(frozen=True)
class Side:
    """One of the two runs, by the name that the page calls it."""

    label: str
    record: RunRecord

    @property
    def values(self) -> Values:
        """The final value of each client that was measured."""
        outcomes = client_outcomes(self.record)
        return {found.client: found.personalised for found in outcomes if found.personalised is not None}


def write_side_by_side(one: Path, other: Path, page: Path) -> Path:
    """Write a page on two runs, whole or not at all, and return its path.

    Raises RunError where one is no run, where the two are measured differently, or where the page cannot be
    written.
    """
    labels = _labels(one.resolve(), other.resolve())
    first, second = (
        Side(label, read_run(folder)) for label, folder in zip(labels, (one, other), strict=True)
    )
    if first.record.primary != second.record.primary:
        raise RunError(
            f"{one} is measured by {first.record.primary.words} and {other} by "
            f"{second.record.primary.words}: give two runs with the same primary measure"
        )
    return write_atomically(page, filled(SIDE_BY_SIDE, _content(first, second, page)).encode("utf-8"))


def _labels(one: Path, other: Path) -> tuple[str, str]:
    """The names of two directories, with as many of the folders above as tell them apart."""
    for depth in range(1, max(len(one.parts), len(other.parts))):
        labels = tuple("/".join(path.parts[-depth:]) for path in (one, other))
        if labels[0] != labels[1]:
            return labels[0], labels[1]
    raise RunError(f"{one} was given twice: give two run directories, or one for its own report")


def _content(first: Side, second: Side, page: Path) -> dict[str, Any]:
    measure, paired = first.record.primary, _same_data(first.record, second.record)
    return {
        "title": f"{first.label} and {second.label}",
        "runs": _runs_table(first, second),
        "reports": [
            (side.label, quote(os.path.relpath(side.record.directory / REPORT, page.parent)))
            for side in (first, second)
            if (side.record.directory / REPORT).is_file()
        ],
        "verdict": _verdict(first, second, paired),
        "settings": _differing(
            first, second, differences(first.record.config, second.record.config), "Setting"
        ),
        "resumed": [(side.label, resumptions(side.record.environment)) for side in (first, second)],
        "versions": _differing(first, second, _versions(first.record, second.record), "Version"),
        "measure": measure.words.capitalize(),
        "results": _results_table(first, second, measure),
        "costs": _costs_table(first, second),
        "figures": _figures(first, second, measure),
        "clients": _clients_table(first, second, measure) if paired else Table([]),
    }


def _runs_table(first: Side, second: Side) -> Table:
    rows = []
    for side in (first, second):
        record = side.record
        started = moment(record.status.get("started"))
        rows.append(TableRow(side.label, texts(run_title(record), record.status["state"], started)))
    return Table(["Run", "Title", "State", "Started"], rows, "worded")


def _same_data(one: RunRecord, other: RunRecord) -> bool:
    """True where each client of one run has the rows of the client of that name in the other: by the digests
    of data that runs keep, else by the seed and by the sizes and classes of the clients' shares."""
    for key in ("clients", "labels"):
        if one.partition.get(key) != other.partition.get(key):
            return False
    digests = [changed_data.recorded(record.directory) for record in (one, other)]
    if None not in digests:
        return digests[0] == digests[1]
    seeds = [settings_of(record.config).get("seed") for record in (one, other)]
    return seeds[0] == seeds[1]


def _verdict(first: Side, second: Side, paired: bool) -> Verdict:
    """Judges by the paired interval over clients if one run is better."""
    measure = first.record.primary
    if not paired:
        text = "The clients of the two runs do not hold the same data, so they are not compared one by one."
        return Verdict("Not compared", text, "unknown")
    found = list(gains(second.values, first.values, measure.higher_is_better).values())
    if not found:
        return Verdict("Not compared", "No client was measured in both runs.", "unknown")
    low, high = interval(found)
    text = (
        f"Mean difference over {counted(len(found), 'client')}, positive where {second.label} is better: "
        f"{shown_gain(sum(found) / len(found), measure)}"
    )
    if not math.isfinite(low):
        return Verdict("Not known", f"{text}. These are too few clients for an interval.", "unknown")
    ends = f"{without_unit(shown_gain(low, measure))} to {shown_gain(high, measure)}"
    text += f" (95% interval {ends})."
    if low > 0:
        return Verdict(f"{second.label} is better", text, "good")
    if high < 0:
        return Verdict(f"{first.label} is better", text, "good")
    return Verdict("Not significantly different", text, "even")


def _versions(one: RunRecord, other: RunRecord) -> list[tuple[str, str, str]]:
    apart = ("command", "run", "resumed")
    keys = [key for key in {**one.environment, **other.environment} if key not in apart]
    rows = [(key, *(str(side.environment.get(key, "")) for side in (one, other))) for key in keys]
    return [(key, a, b) for key, a, b in rows if a != b]


def _differing(first: Side, second: Side, found: list[tuple[str, str, str]], name: str) -> Table:
    rows = [TableRow(key, texts(one or NOT_MEASURED, other or NOT_MEASURED)) for key, one, other in found]
    return Table([name, first.label, second.label], rows, "worded")


def _results_table(first: Side, second: Side, measure: Measure) -> Table:
    """Results of both, and by how much the second is better; rows that neither measured are left out."""
    keys = [
        ("Federated, personalised: mean", "personalised", "mean"),
        ("Weighted mean", "personalised", "weighted"),
        ("Worst client", "personalised", "worst"),
        ("Worst tenth", "personalised", "worst_tenth"),
        ("Global model", "global", "mean"),
        ("Alone: mean", "local_only", "mean"),
        ("Majority class: mean", "majority", "mean"),
    ]
    rows = []
    for name, model, key in keys:
        one, other = ((side.record.summary.get(model) or {}).get(key) for side in (first, second))
        rows.append(_compared(name, one, other, measure))
    summaries = [side.record.summary for side in (first, second)]
    gain = [Cell(shown_gain(summary.get("gain_over_local"), measure)) for summary in summaries]
    rows.append(TableRow("Gain over alone", [*gain, Cell("")]))
    harmed = [summary.get("clients_harmed") for summary in summaries]
    counts = [NOT_MEASURED if count is None else str(count) for count in harmed]
    rows.append(TableRow("Clients harmed", texts(*counts, "")))
    known = [row for row in rows if {row.cells[0].text, row.cells[1].text} != {NOT_MEASURED}]
    return Table(["Measure", first.label, second.label, "Second better by"], known)


def _compared(name: str, one: float | None, other: float | None, measure: Measure) -> TableRow:
    better = None if one is None or other is None else measure.merit(other) - measure.merit(one)
    return TableRow(
        name, [measured(one, measure), measured(other, measure), Cell(shown_gain(better, measure))]
    )


def _costs_table(first: Side, second: Side) -> Table:
    keys = [
        ("Sent up", "bytes_up", amount),
        ("Sent down", "bytes_down", amount),
        ("A client's upload in a round", "bytes_up_per_client_round", amount),
        ("Time", "seconds", duration),
    ]
    summaries = [side.record.summary for side in (first, second)]
    rows = []
    for name, key, told in keys:
        one, other = (summary.get(key) for summary in summaries)
        ratio = f"{other / one:.2f}" if one and other is not None else NOT_MEASURED
        rows.append(TableRow(name, texts(told(one), told(other), ratio)))
    for name, key in (("Rounds", "rounds"), ("Clients", "clients")):
        counts = [str(summary.get(key, NOT_MEASURED)) for summary in summaries]
        rows.append(TableRow(name, texts(*counts, "")))
    return Table(["Cost", first.label, second.label, "Second over first"], rows)


def _figures(first: Side, second: Side, measure: Measure) -> list[EmbeddedFigure]:
    drawn = [
        (f"Personalised {measure.words} by round", measure.name, measure, "Mean over clients."),
        ("Training loss by round", "loss", LOSS, "Mean over clients, while they train."),
    ]
    figures = []
    for title, key, shown_as, caption in drawn:
        lines = [
            Line(first.label, _points(first.record.rounds, key), "alone", "8 4"),
            Line(second.label, _points(second.record.rounds, key), "personalised"),
        ]
        ends = [
            f"{line.name} {shown(line.points[-1][1], shown_as)} in round {line.points[-1][0]}"
            for line in lines
            if line.points
        ]
        if ends:
            alt = f"Line chart, {title}: {'; '.join(ends)}."
            figures.append(EmbeddedFigure(chart(title, lines, shown_as), alt, caption, full=False))
    return figures


def _points(rounds: list[Row], key: str) -> list[tuple[int, float]]:
    return [(row["round"], row[key]) for row in rounds if row.get(key) is not None]


def _clients_table(first: Side, second: Side, measure: Measure) -> Table:
    one, other = first.values, second.values
    rows = []
    for client in in_order({*one, *other}):
        a, b = one.get(client), other.get(client)
        better = None if a is None or b is None else measure.merit(b) - measure.merit(a)
        rows.append(TableRow(client, [measured(a, measure), measured(b, measure), gained(better, measure)]))
    unit = " (points)" if measure.format == "percent" else ""
    return Table(["Client", first.label, second.label, f"Second better by{unit}"], rows, "sortable")
