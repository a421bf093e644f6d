"""The section of each client in a report: its curve, its measures, and which classes it takes for which."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsa_lora import predictions
from fedsa_lora.errors import StoreError
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.predictions import Predictions
from fedsa_lora.report.chart import SMALL, Line, chart
from fedsa_lora.report.page_figures import EmbeddedFigure
from fedsa_lora.report.page_tables import Cell, Table, TableRow, measured
from fedsa_lora.report.recorded_config import section, settings_of
from fedsa_lora.report.wording import counted, percent, shown, shown_gain
from fedsa_lora.runs.measures import confusion
from fedsa_lora.runs.outcomes import ClientOutcome
from fedsa_lora.runs.reading import Row, RunRecord

MOST = 100  # clients with a section; with more a page would take megabytes
FEW_CLASSES = 12  # as many columns as a page has room for


@dataclass(frozen=True)
class ClientSection:
    """Section of one client; ``classes`` is empty where its predictions are not on this machine."""

    id: str
    name: str
    heading: str
    figure: EmbeddedFigure
    measures: Table
    classes: Table
    note: str


def client_sections(record: RunRecord, outcomes: list[ClientOutcome]) -> dict[str, ClientSection]:
    """The sections by client, in the order of their ids; of more than MOST clients, those with the lowest
    gain, or the worst where no gain is known."""
    of_client: dict[str, list[Row]] = {outcome.client: [] for outcome in outcomes}
    for row in record.clients:
        if row["phase"] == "evaluate" and row.get(record.primary.name) is not None:
            of_client[str(row["client"])].append(row)
    known = [outcome for outcome in outcomes if of_client[outcome.client]]
    worst = sorted(known, key=lambda outcome: _standing(outcome, record.primary))[:MOST]
    kept = {outcome.client for outcome in worst}
    store = _store(record)
    sections = {}
    for n, outcome in enumerate(outcomes):
        if outcome.client in kept:
            rows = of_client[outcome.client]
            sections[outcome.client] = _section(f"client-{n}", record, outcome, rows, store)
    return sections


def _standing(outcome: ClientOutcome, measure: Measure) -> float:
    if outcome.gain is not None:
        return outcome.gain
    return math.inf if outcome.personalised is None else measure.merit(outcome.personalised)


def _store(record: RunRecord) -> Path | None:
    """The folder of the clients of a simulation; None of a deployed run, whose folders are the clients'."""
    settings = settings_of(record.config)
    if section(settings, "federation").get("superlink"):
        return None
    store = section(settings, "run").get("store")
    return Path(store).expanduser() if isinstance(store, str) and store else record.directory / "clients"


def _section(
    place: str, record: RunRecord, outcome: ClientOutcome, rows: list[Row], store: Path | None
) -> ClientSection:
    primary, last = record.primary, rows[-1]
    heading = f"Client {outcome.client}: {primary.words} {shown(last[primary.name], primary)}"
    if outcome.gain is not None:
        heading += f", {shown_gain(outcome.gain, primary)} over alone"
    classes, note = _classes(outcome.client, store, record.partition.get("labels", []))
    return ClientSection(
        id=place,
        name=outcome.client,
        heading=heading,
        figure=_curve(record, outcome, rows),
        measures=_measures(record, last),
        classes=classes,
        note=note,
    )


def _curve(record: RunRecord, outcome: ClientOutcome, rows: list[Row]) -> EmbeddedFigure:
    primary, first, last = record.primary, rows[0], rows[-1]
    own = [(row["round"], row[primary.name]) for row in rows]
    mean = [(row["round"], row[primary.name]) for row in record.rounds if row.get(primary.name) is not None]
    lines = [Line("this client", own, "personalised"), Line("mean of clients", mean, "muted", "4 3")]
    if outcome.local_only is not None:
        ends = [(number, outcome.local_only) for number in dict.fromkeys((own[0][0], own[-1][0]))]
        lines.append(Line("alone", ends, "alone", "8 4"))
    alt = (
        f"Line chart: {primary.words} {shown(first[primary.name], primary)} in round {first['round']} and "
        f"{shown(last[primary.name], primary)} in round {last['round']}."
    )
    pictures = chart(f"{primary.words.capitalize()} by round", lines, primary, SMALL)
    return EmbeddedFigure(pictures, alt, "", full=False)


def _measures(record: RunRecord, last: Row) -> Table:
    rows = [
        TableRow(measure.words.capitalize(), [measured(last[measure.name], measure)])
        for measure in record.measures
        if last.get(measure.name) is not None
    ]
    return Table([f"On {counted(last.get('measured', 0), 'test example')}", f"Round {last['round']}"], rows)


def _classes(client: str, store: Path | None, labels: list[str]) -> tuple[Table, str]:
    """The table of a client's classes, and a remark on it."""
    if store is None or Path(client).name != client or client == "..":
        return Table([]), ""
    try:
        found = predictions.read(store / client)
    except StoreError as error:
        return Table([]), str(error)
    if found is None or not len(found.labels):
        return Table([]), ""
    names, counts = _counts(found, labels)
    if len(names) <= FEW_CLASSES:
        return _matrix(
            names, counts
        ), f"Test examples of each true class, by predicted class, round {found.round}."
    note = f"The {FEW_CLASSES} of {len(names)} classes with most errors, round {found.round}."
    return _most_errors(names, counts), note


def _counts(found: Predictions, labels: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The classes that are among the labels or the predictions, in the order of the run's, and the counts of
    examples by true class (row) and predicted class (column)."""
    counts = confusion(found.labels, found.predicted, len(found.names))
    position = {name: n for n, name in enumerate(map(str, labels))}
    present = [n for n in range(len(found.names)) if counts[n].any() or counts[:, n].any()]
    present.sort(key=lambda n: (position.get(found.names[n], len(position)), n))
    return [found.names[n] for n in present], counts[np.ix_(present, present)]


def f1_scores(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 of each class that occurs: 2 TP / (2 TP + FP + FN); (n, n) counts by true and predicted class."""
    scores: NDArray[np.float64] = 2 * counts.diagonal() / (counts.sum(axis=0) + counts.sum(axis=1))
    return scores


def _matrix(names: list[str], counts: NDArray[np.int64]) -> Table:
    scores = f1_scores(counts)
    rows = []
    for n, name in enumerate(names):
        cells = [Cell(percent(scores[n]))]
        cells += [Cell(str(count), strong=n == column) for column, count in enumerate(counts[n])]
        rows.append(TableRow(name, cells))
    return Table(["True class", "F1", *(f"as {name}" for name in names)], rows)


def _most_errors(names: list[str], counts: NDArray[np.int64]) -> Table:
    """The classes with most errors, of both kinds, each with the class that it is most often taken for."""
    scores, right = f1_scores(counts), counts.diagonal()
    wrong = counts - np.diag(right)
    errors = wrong.sum(axis=0) + wrong.sum(axis=1)
    rows = []
    for n in np.argsort(-errors, kind="stable")[:FEW_CLASSES]:
        examples, other = int(counts[n].sum()), int(wrong[n].argmax())
        taken = f"{names[other]} ({wrong[n, other]})" if wrong[n, other] else ""
        numbers = [Cell(str(count), count) for count in (examples, int(right[n]))]
        score = Cell(percent(scores[n]), float(scores[n]))
        rows.append(TableRow(names[n], [*numbers, score, Cell(taken)]))
    return Table(["True class", "Examples", "Correct", "F1", "Most often predicted as"], rows, "sortable")
