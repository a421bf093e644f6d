"""Turn a run directory into `report.html`: one file that needs nothing else to be read."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fedsa_lora.exchange.measure import Measure
from fedsa_lora.files import write_atomically
from fedsa_lora.report import svg
from fedsa_lora.report.account import FULL, SENT, absences, cost, naming, uploads, what_left
from fedsa_lora.report.forgotten import unlearning_lines
from fedsa_lora.report.measure_words import measure_rows
from fedsa_lora.report.page_figures import embedded_figures
from fedsa_lora.report.template import PAGE, STYLE
from fedsa_lora.report.wording import (
    NOT_MEASURED,
    amount,
    counted,
    duration,
    left_out,
    moment,
    number,
    of_clients,
    percent,
    reached,
    shown,
    shown_gain,
    verdict,
    without_unit,
)
from fedsa_lora.runs.outcomes import ClientOutcome, client_outcomes, remarks
from fedsa_lora.runs.reading import REPORT, Row, RunRecord, read_run


@dataclass(frozen=True)
class TableRow:
    """A row of a table: its name, its cells, what marks it, and for clients a note in words."""

    name: str
    cells: list[str]
    kind: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows as text, ready to be shown."""

    columns: list[str]
    rows: list[TableRow] = field(default_factory=list)


@dataclass(frozen=True)
class Tile:
    """One number of the first screen."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Stopped:
    """The reason why the run has no regular end, and what there is all the same."""

    heading: str
    reason: str
    shown: str
    tone: str


def write_report(run_dir: Path, completed: bool = False, figures: dict[str, Figure] | None = None) -> Path:
    """Write `report.html` into the run directory, whole or not at all, and return its path.

    A run that failed or still runs is reported with what it has recorded. `completed`: the report is the last
    file but the status, which says "completed" once everything is there, so the report says it first.
    `figures`: those of `draw_all`, where the run is drawn already.
    """
    record = read_run(run_dir)
    if completed:
        record = replace(record, status=record.status | {"state": "completed", "reason": None})
    return write_atomically(run_dir / REPORT, render(record, figures).encode("utf-8"))


def render(record: RunRecord, figures: dict[str, Figure] | None = None) -> str:
    """The report of a run as HTML; every text of the run is escaped. `figures` are as in `write_report`."""
    # What a run recorded holds names from foreign data sets: autoescape makes them inert.
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    content = _content(record) | {"figures": embedded_figures(record, figures)}
    return page.from_string(PAGE).render(content).strip() + "\n"


def _content(record: RunRecord) -> dict[str, Any]:
    summary, outcomes, primary = record.summary, client_outcomes(record), record.primary
    return {
        "style": Markup(STYLE + svg.STYLE),  # escaped quotes would break the style sheet
        "state": record.status["state"],
        "title": summary.get("title") or summary.get("name") or f"Run {record.directory.resolve().name}",
        "description": summary.get("description"),
        "changes": Table(
            ["Changed", "To"], [TableRow(key, [value]) for key, value in record.changes.items()]
        ),
        "meta": _meta(record),
        "stopped": _stopped(record),
        "results": bool(summary),
        "verdict": verdict(summary, primary),
        "tiles": _tiles(summary, primary) if summary else [],
        "cost": cost(summary),
        "uploads": _uploads_table(summary),
        "left": what_left(summary),
        "measure": primary.words.capitalize(),
        "reached": _reached_table(summary, primary),
        "left_out": left_out(summary),
        "measures": _measures_table(record),
        "unlearning": _unlearning_table(record),
        "clients": _clients_table(outcomes, primary),
        "clients_title": f"{counted(len(outcomes), 'client')}, by id",
        "rounds": _rounds_table(record.rounds, primary),
        "notes": [
            *record.partition.get("notes", []),
            *naming(_federation(record.config)),
            *absences(record.rounds, len(record.partition.get("clients", {}))),
        ],
        "remarks": _remarks_table(record),
        "config": record.config,
        "environment": {name: value for name, value in record.environment.items() if name != "command"},
        "command": record.environment.get("command"),
        "directory": record.directory.resolve().name,
    }


def _federation(config: str) -> Row:
    """The federation's settings of a config as it was written; nothing of one that was cut off."""
    try:
        settings = yaml.safe_load(config)
    except yaml.YAMLError:
        return {}
    found = settings.get("federation") if isinstance(settings, dict) else None
    return found if isinstance(found, dict) else {}


def _meta(record: RunRecord) -> str:
    parts = [record.summary.get("name"), record.status.get("started") and moment(record.status["started"])]
    parts += [record.environment.get("device")]
    return " · ".join(str(part) for part in parts if part)


def _stopped(record: RunRecord) -> Stopped | None:
    count = len(record.rounds)
    shown = f"Below is what it recorded: {counted(count, 'round')}." if count else "It recorded no round."
    if record.status["state"] == "stopped":
        return Stopped("This run was stopped", record.status.get("reason") or "", shown, "unknown")
    if record.status["state"] == "failed":
        reason = (
            record.status.get("reason") or "No reason was recorded; look into the logs of the run directory."
        )
        return Stopped("This run failed", reason, shown, "bad")
    if record.status["state"] == "running":
        return Stopped("This run had not ended when this was written", "", shown, "unknown")
    return None


def _tiles(summary: Row, measure: Measure) -> list[Tile]:
    ours, alone = summary.get("personalised") or {}, summary.get("local_only") or {}
    harmed = summary.get("clients_harmed")
    compared = summary.get("clients_compared", summary.get("clients"))
    gain = shown_gain(summary.get("gain_over_local"), measure)

    def told(key: str, model: Row) -> str:
        return shown(model.get(key), measure)

    return [
        Tile(f"Mean {measure.words}", told("mean", ours), f"alone {told('mean', alone)}"),
        Tile("Worst client", told("worst", ours), f"worst alone {told('worst', alone)}"),
        Tile("Gain over alone", gain, "mean over clients"),
        Tile(
            "Clients harmed",
            NOT_MEASURED if harmed is None else f"{harmed} of {compared}",
            "worse off than alone",
        ),
        Tile("Sent up", amount(summary.get("bytes_up")), f"down {amount(summary.get('bytes_down'))}"),
        Tile("Time", duration(summary.get("seconds")), counted(summary.get("rounds", 0), "round")),
    ]


def _uploads_table(summary: Row) -> Table:
    rows, sizes = [], uploads(summary)
    for name, size in sizes.items():
        saved = percent(1 - size / sizes[FULL])
        rows.append(TableRow(name, [f"{size:,.0f}", saved], kind="ours" if name == SENT else ""))
    return Table(["Upload of a client in a round", "Bytes", "Saved"], rows)


def _reached_table(summary: Row, measure: Measure) -> Table:
    rows = [
        TableRow(row.model.capitalize(), [row.mean, row.weighted, row.worst], kind="ours" if row.ours else "")
        for row in reached(summary, measure)
    ]
    return Table([f"Model{of_clients(summary)}", "Mean", "Weighted", "Worst client"], rows)


def _measures_table(record: RunRecord) -> Table:
    columns = ["Measure", "Federated", "Alone", "Majority class", "What it says"]
    rows = [
        TableRow(row.name, [row.federated, row.alone, row.majority], note=row.meaning)
        for row in measure_rows(record)
    ]
    return Table(columns, rows)


def _unlearning_table(record: RunRecord) -> Table:
    rows = [TableRow(title, [words]) for title, words in unlearning_lines(record.unlearning)]
    return Table(["Of what", "Measured"], rows)


def _clients_table(outcomes: list[ClientOutcome], measure: Measure) -> Table:
    gain = "Gain (points)" if measure.format == "percent" else "Gain"
    columns = ["Client", "Federated", "Alone", gain, "Before aggregation", "Majority class"]
    columns += ["Train examples", "Test examples", "Rounds trained", "Up", "Down", "Remarks"]
    final = max((outcome.evaluated_in or 0 for outcome in outcomes), default=0)
    return Table(columns, [_client_row(outcome, final, measure) for outcome in outcomes])


def _client_row(outcome: ClientOutcome, final: int, measure: Measure) -> TableRow:
    values = [outcome.personalised, outcome.local_only, outcome.before, outcome.majority]
    federated, alone, before, majority = (shown(value, measure) for value in values)
    gain = without_unit(shown_gain(outcome.gain, measure)) + (" ▼ harmed" if outcome.harmed else "")
    counts = [NOT_MEASURED if n is None else f"{n:,}" for n in (outcome.train, outcome.test, outcome.rounds)]
    sent = [amount(outcome.bytes_up), amount(outcome.bytes_down)]
    notes = [f"{counted(outcome.failures, 'failure')}, see Answers that failed"] if outcome.failures else []
    if outcome.measured == 0:
        notes.append("no examples to be measured on")
    elif outcome.evaluated_in is None:
        notes.append("never evaluated")
    elif outcome.evaluated_in < final:
        notes.append(f"last evaluated in round {outcome.evaluated_in}")
    return TableRow(
        name=outcome.client,
        cells=[federated, alone, gain, before, majority, *counts, *sent],
        kind="harmed" if outcome.harmed else "",
        note="; ".join(notes),
    )


def _rounds_table(rounds: list[Row], measure: Measure) -> Table:
    columns = ["Round", "Mean", "Weighted", "Worst client", "Before aggregation", "Train loss"]
    columns += ["Clients", "Failures", "Up", "Down", "Time"]
    keys = (measure.name, measure.weighted, measure.worst, measure.before)
    rows = []
    for row in rounds:
        cells = [shown(row.get(key), measure) for key in keys] + [number(row.get("loss"))]
        cells += [str(row.get(key, NOT_MEASURED)) for key in ("fit_clients", "fit_failures")]
        cells += [amount(row.get("bytes_up")), amount(row.get("bytes_down")), duration(row.get("seconds"))]
        rows.append(TableRow(f"{row['round']}{' (skipped)' if row.get('skipped') else ''}", cells))
    return Table(columns, rows)


def _remarks_table(record: RunRecord) -> Table:
    rows = [
        TableRow(found.client or "unknown", [found.kind, _listed(found.rounds)], note=found.reason)
        for found in remarks(record)
    ]
    return Table(["Client", "Answer", "Rounds", "Why"], rows)


def _listed(rounds: tuple[int, ...]) -> str:
    return ", ".join(map(str, rounds))
