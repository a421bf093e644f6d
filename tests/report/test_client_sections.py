"""The section of a client shows its curve and measures, and counts of its predictions where they are here."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from html_page import Page
from synthetic_run import write_run

from fedsa_lora import predictions
from fedsa_lora.predictions import Predictions
from fedsa_lora.report.client_sections import FEW_CLASSES, MOST, ClientSection, client_sections, f1_scores
from fedsa_lora.report.page import render
from fedsa_lora.runs.measures import confusion
from fedsa_lora.runs.outcomes import client_outcomes
from fedsa_lora.runs.reading import read_run
from fedsa_lora.tasks.classification import agreement

EVIL = "<script>alert(1)</script>"


def sections_of(folder: Path) -> dict[str, ClientSection]:
    record = read_run(folder)
    return client_sections(record, client_outcomes(record))


def predict(folder: Path, client: str, names: tuple[str, ...], seed: int = 0) -> Predictions:
    """Predictions of 40 examples, two in three of them right, as a client keeps them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(names), 40)
    predicted = np.where(rng.random(40) < 2 / 3, labels, rng.integers(0, len(names), 40))
    made = Predictions(2, names, labels, predicted, np.full(40, 0.5, np.float32))
    (folder / "clients").mkdir(exist_ok=True)
    predictions.write(folder / "clients" / client, made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path, clients=2, labels=("a", "b", "c"), rounds=2)


def test_the_matrix_counts_examples_by_true_and_predicted_class(folder):
    made = predict(folder, "1", ("c", "a", "b"))  # an order of its own
    table = sections_of(folder)["1"].classes
    assert table.columns == ["True class", "F1", "as a", "as b", "as c"]
    for row in table.rows:
        for column, cell in zip(table.columns[2:], row.cells[1:], strict=True):
            true, called = made.names.index(row.name), made.names.index(column.removeprefix("as "))
            assert int(cell.text) == ((made.labels == true) & (made.predicted == called)).sum()
            assert cell.strong == (true == called)


def test_the_mean_of_f1_is_the_macro_f1_of_the_task(folder):
    made = predict(folder, "0", ("a", "b", "c", "d"))
    counts = confusion(made.labels, made.predicted, 4)
    assert f1_scores(counts).mean() == pytest.approx(agreement(made.labels, made.predicted, 4)["macro_f1"])


def test_a_class_that_is_neither_true_nor_predicted_has_no_row(folder):
    labels = np.array([0, 1, 1])
    (folder / "clients").mkdir()
    made = Predictions(2, ("a", "b", "c"), labels, labels, np.ones(3, np.float32))
    predictions.write(folder / "clients" / "0", made)
    rows = sections_of(folder)["0"].classes.rows
    assert [(row.name, row.cells[0].text) for row in rows] == [("a", "100.0%"), ("b", "100.0%")]


def test_of_many_classes_those_with_most_errors_are_shown(tmp_path):
    names = tuple(f"class {n}" for n in range(30))
    write_run(tmp_path, clients=1, labels=names, rounds=2)
    made = predict(tmp_path, "0", names)
    section = sections_of(tmp_path)["0"]
    assert len(section.classes.rows) == FEW_CLASSES
    worst = section.classes.rows[0]
    assert int(worst.cells[0].text) == (made.labels == names.index(worst.name)).sum()
    assert f"The {FEW_CLASSES} of" in section.note


@pytest.mark.usefixtures("undrawn")
def test_without_predictions_nothing_is_said_of_classes(folder):
    section = sections_of(folder)["0"]
    assert (section.classes.rows, section.note) == ([], "")
    assert "True class" not in Page(render(read_run(folder))).text


def test_clients_of_a_deployed_run_are_not_looked_into(folder):
    predict(folder, "0", ("a", "b", "c"))
    (folder / "config.yaml").write_text("federation: {superlink: 'hub:1'}\n")
    assert sections_of(folder)["0"].classes.rows == []


def test_only_the_store_of_the_run_is_read(tmp_path):
    run = write_run(tmp_path / "run", clients=1, labels=("a", "b"), rounds=1)
    predict(run, "0", ("a", "b"))
    (run / "clients" / "0").rename(tmp_path / "outside")
    for path in (run / "partition.json", run / "clients.jsonl"):
        path.write_text(path.read_text().replace('"0"', '"../../outside"'))
    (section,) = sections_of(run).values()
    assert section.classes.rows == []


@pytest.mark.usefixtures("undrawn")
def test_damaged_predictions_are_told_and_the_page_is_whole(folder):
    predict(folder, "0", ("a", "b", "c"))
    (folder / "clients" / "0" / predictions.FILE).write_bytes(b"cut off")
    page = Page(render(read_run(folder)))
    assert "is unreadable" in page.text
    assert not page.open


def test_names_of_classes_and_clients_are_inert(folder):
    predict(folder, "0", ("a", EVIL, "c"))
    rows = (folder / "clients.jsonl").read_text()
    (folder / "clients.jsonl").write_text(
        rows + json.dumps(json.loads(rows.splitlines()[-1]) | {"client": EVIL})
    )
    page = Page(render(read_run(folder)))
    assert len(page.scripts) == 1
    assert f"as {EVIL}" in page.text
    assert f"{EVIL}: accuracy" in page.text


def test_the_curve_has_the_values_of_the_rows(folder):
    record = read_run(folder)
    (curve,) = sections_of(folder)["1"].figure.pictures
    titles = re.findall("<title>(.*?)</title>", curve)
    rows = [row for row in record.clients if (row["client"], row["phase"]) == ("1", "evaluate")]
    for row, title in zip(rows, titles, strict=True):
        assert title.startswith(f"round {row['round']}: this client {row['accuracy']:.1%}, mean of clients")


def test_of_very_many_clients_those_with_the_lowest_gain_have_a_section(tmp_path):
    record = read_run(write_run(tmp_path, clients=MOST + 3, labels=2, rounds=1))
    outcomes = client_outcomes(record)
    left_out = sorted(outcomes, key=lambda outcome: outcome.gain)[-3:]
    kept = client_sections(record, outcomes)
    assert {found.client for found in outcomes} - kept.keys() == {found.client for found in left_out}
