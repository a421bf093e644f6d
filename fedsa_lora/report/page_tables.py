"""Tables of a report, ready to be shown: texts, and the numbers that a reader sorts them by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fedsa_lora.exchange.measure import Measure
from fedsa_lora.report.account import FULL, SENT, uploads
from fedsa_lora.report.forgotten import unlearning_lines
from fedsa_lora.report.measure_words import measure_rows
from fedsa_lora.report.wording import (
    NOT_MEASURED,
    amount,
    counted,
    duration,
    number,
    of_clients,
    percent,
    reached,
    shown,
    shown_gain,
    without_unit,
)
from fedsa_lora.runs.outcomes import ClientOutcome, remarks
from fedsa_lora.runs.reading import UNLEARNING, Row, RunRecord

# measurements with their own section, by file: its title, and the lines of its table
AFTERWARDS = {UNLEARNING: ("Unlearning", unlearning_lines)}


@dataclass(frozen=True)
class Cell:
    """A text, the number that it is sorted by, None of a text that is none, and whether it stands out."""

    text: str
    value: float | None = None
    strong: bool = False

    @property
    def order(self) -> str:
        """The number as an attribute has it, to six digits, a count whole; empty without a finite one."""
        if self.value is None or not math.isfinite(self.value):
            return ""
        return str(self.value) if isinstance(self.value, int) else f"{self.value:.6g}"


@dataclass(frozen=True)
class TableRow:
    """A row of a table: its name, its cells, what marks it, a note in words, and the id of the part of the
    page that its name leads to."""

    name: str
    cells: list[Cell]
    kind: str = ""
    note: str = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows as text. ``kind`` are classes of the style sheet: ``sortable`` by a click on a header,
    ``wide`` of many columns, ``noted`` with the notes of its rows as the last column, ``explained`` with them
    below the names."""

    columns: list[str]
    rows: list[TableRow] = field(default_factory=list)
    kind: str = ""


def measured(value: float | None, measure: Measure) -> Cell:
    """A value of a measure."""
    return Cell(shown(value, measure), value)


def gained(gain: float | None, measure: Measure) -> Cell:
    """A difference that is better when higher, without its unit."""
    return Cell(without_unit(shown_gain(gain, measure)), gain)


def texts(*words: str) -> list[Cell]:
    """Cells of words alone."""
    return [Cell(word) for word in words]


def changes_table(record: RunRecord) -> Table:
    """The settings in which a run differs from its experiment; where that is not recorded, as of a run that
    has not ended, the words of its command."""
    if against := record.summary.get("against_experiment"):
        rows = [
            TableRow(key, texts(there or NOT_MEASURED, here or NOT_MEASURED)) for key, there, here in against
        ]
        return Table(["Changed", "In the experiment", "In this run"], rows, "worded")
    rows = [TableRow(key, texts(value)) for key, value in record.changes.items()]
    return Table(["Changed", "To"], rows, "worded")


def uploads_table(summary: Row) -> Table:
    """Bytes of an upload beside those of the full model; without rows where nothing can be compared."""
    rows, sizes = [], uploads(summary)
    for name, size in sizes.items():
        saved = percent(1 - size / sizes[FULL])
        rows.append(TableRow(name, texts(f"{size:,.0f}", saved), kind="ours" if name == SENT else ""))
    return Table(["Upload of a client in a round", "Bytes", "Saved"], rows)


def reached_table(summary: Row, measure: Measure) -> Table:
    """The models that were measured, over all clients."""
    rows = [
        TableRow(
            row.model.capitalize(), texts(row.mean, row.weighted, row.worst), kind="ours" if row.ours else ""
        )
        for row in reached(summary, measure)
    ]
    return Table([f"Model{of_clients(summary)}", "Mean", "Weighted", "Worst client"], rows)


def measures_table(record: RunRecord) -> Table:
    """The measures of personalisation, each with its meaning."""
    rows = [
        TableRow(row.name, texts(row.federated, row.alone, row.majority), note=row.meaning)
        for row in measure_rows(record)
    ]
    return Table(["Measure", "Federated", "Alone", "Majority class"], rows, "explained")


def afterwards_tables(record: RunRecord) -> dict[str, Table]:
    """Tables of what was measured after a run, by title."""
    tables = {}
    for name, (title, lines) in AFTERWARDS.items():
        if name in record.afterwards:
            rows = [TableRow(of_what, texts(words)) for of_what, words in lines(record.afterwards[name])]
            tables[title] = Table(["Of what", "Measured"], rows, "worded")
    return tables


def clients_table(outcomes: list[ClientOutcome], measure: Measure, links: dict[str, str]) -> Table:
    """One row for each client; ``links`` are the ids of their sections of the page, by client."""
    gain = "Gain (points)" if measure.format == "percent" else "Gain"
    columns = ["Client", "Federated", "Alone", gain, "Before aggregation", "Majority class"]
    columns += ["Train examples", "Test examples", "Rounds trained", "Up", "Down"]
    final = max((outcome.evaluated_in or 0 for outcome in outcomes), default=0)
    rows = [_client_row(outcome, final, measure, links.get(outcome.client, "")) for outcome in outcomes]
    if any(row.note for row in rows):
        return Table([*columns, "Remarks"], rows, "sortable wide noted")
    return Table(columns, rows, "sortable wide")


def _client_row(outcome: ClientOutcome, final: int, measure: Measure, link: str) -> TableRow:
    gain = gained(outcome.gain, measure)
    if outcome.harmed:
        gain = Cell(f"{gain.text} ▼ harmed", gain.value)
    values = [outcome.personalised, outcome.local_only, outcome.before, outcome.majority]
    federated, alone, before, majority = (measured(value, measure) for value in values)
    counts = [
        Cell(NOT_MEASURED if n is None else f"{n:,}", n)
        for n in (outcome.train, outcome.test, outcome.rounds)
    ]
    sent = [Cell(amount(size), size) for size in (outcome.bytes_up, outcome.bytes_down)]
    return TableRow(
        name=outcome.client,
        cells=[federated, alone, gain, before, majority, *counts, *sent],
        kind="harmed" if outcome.harmed else "",
        note="; ".join(_client_notes(outcome, final)),
        link=link,
    )


def _client_notes(outcome: ClientOutcome, final: int) -> list[str]:
    notes = []
    if outcome.failures:
        notes.append(f"{counted(outcome.failures, 'failure')}, see Answers that failed")
    if outcome.measured == 0:
        notes.append("no test examples")
    elif outcome.evaluated_in is None:
        notes.append("never evaluated")
    elif outcome.evaluated_in < final:
        notes.append(f"last evaluated in round {outcome.evaluated_in}")
    return notes


def rounds_table(rounds: list[Row], measure: Measure) -> Table:
    """One row for each round."""
    columns = ["Round", "Mean", "Weighted", "Worst client", "Before aggregation", "Train loss"]
    columns += ["Clients", "Failures", "Up", "Down", "Time"]
    keys = (measure.name, measure.weighted, measure.worst, measure.before)
    rows = []
    for row in rounds:
        cells = [measured(row.get(key), measure) for key in keys]
        cells.append(Cell(number(row.get("loss")), row.get("loss")))
        counts = [row.get(key) for key in ("fit_clients", "fit_failures")]
        cells += [Cell(NOT_MEASURED if count is None else str(count), count) for count in counts]
        cells += [Cell(amount(row.get(key)), row.get(key)) for key in ("bytes_up", "bytes_down")]
        cells.append(Cell(duration(row.get("seconds")), row.get("seconds")))
        rows.append(TableRow(f"{row['round']}{' (skipped)' if row.get('skipped') else ''}", cells))
    return Table(columns, rows, "sortable")


def remarks_table(record: RunRecord) -> Table:
    """Answers that failed or were clipped."""
    rows = []
    for found in remarks(record):
        rounds = ", ".join(map(str, found.rounds))
        rows.append(TableRow(found.client or "unknown", texts(found.kind, rounds), note=found.reason))
    return Table(["Client", "Answer", "Rounds", "Why"], rows, "sortable noted worded")
