"""Every measure stands in the report with its references and a meaning, measured or not."""

import json
from pathlib import Path

import pytest
from synthetic_run import write_run

from fedsa_lora.report.measure_words import MeasureRow, measure_rows
from fedsa_lora.report.page import write_report
from fedsa_lora.report.wording import NOT_MEASURED
from fedsa_lora.runs.reading import EVALUATION, read_run


def rows_of(folder: Path) -> dict[str, MeasureRow]:
    return {row.name: row for row in measure_rows(read_run(folder))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path, clients=4, rounds=2)


def change(path: Path, **values) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def test_the_spread_stands_beside_both_references(folder):
    summary, found = read_run(folder).summary, rows_of(folder)
    for name, key in (("Mean accuracy", "mean"), ("Minimum", "worst"), ("Worst tenth", "worst_tenth")):
        row = found[name]
        cells = (row.federated, row.alone, row.majority)
        models = ("personalised", "local_only", "majority")
        assert cells == tuple(f"{summary[model][key]:.1%}" for model in models)
    assert found["Jain's index"].federated == f"{summary['personalised']['jain']:.3f}"
    assert found["Standard deviation"].alone == f"{100 * summary['local_only']['std']:.1f} points"
    assert len(found["Deciles (%)"].federated.split()) == 9
    assert found["Clients harmed"].federated == "25.0%"


def test_a_target_is_told_when_it_was_reached_and_when_never(folder):
    assert rows_of(folder)["First round at or above training alone"].federated == "round 7, 31.1 MB, 49.0 s"
    target = {"accuracy": 0.9, "rounds": None, "bytes": None, "seconds": None}
    change(folder / "summary.json", target=target)
    assert rows_of(folder)["First round at or above training alone"].federated == "never"
    change(folder / "summary.json", target=None)
    assert rows_of(folder)["First round at or above training alone"].federated == NOT_MEASURED


def test_a_target_of_a_loss_is_reached_from_above(folder):
    loss = {"name": "loss", "range": [0.0, 9.0], "higher_is_better": False, "format": "number"}
    change(folder / "partition.json", measures=[loss])
    assert "First round at or below training alone" in rows_of(folder)


def test_what_needs_all_data_says_how_to_measure_it_until_it_is(folder):
    for name, option in (("On all clients' examples", "--union"), ("A newcomer", "--newcomer-steps")):
        assert rows_of(folder)[name].federated == NOT_MEASURED
        assert option in rows_of(folder)[name].meaning
    personalised = read_run(folder).summary["personalised"]["mean"]
    union = {"examples": 280, "accuracy": dict.fromkeys("0123", personalised - 0.1)}
    took_part = {"0": True, "1": True, "2": False, "3": False}
    newcomer = {"steps": 5, "took_part": took_part, "accuracy": dict.fromkeys("0123", 0.5)}
    newcomer["alone"] = {"0": 0.1, "1": 0.3, "2": 0.2, "3": 0.2}
    change(folder / EVALUATION, union=union, newcomer=newcomer)
    found = rows_of(folder)
    assert "280 examples" in found["On all clients' examples"].meaning
    assert "+10.0 points" in found["On all clients' examples"].meaning
    assert (found["A newcomer, 5 steps"].federated, found["A newcomer, 5 steps"].alone) == ("50.0%", "20.0%")
    assert "4 clients, of which 2" in found["A newcomer, 5 steps"].meaning


def test_a_run_without_measures_has_the_table_all_the_same(folder):
    (folder / "summary.json").write_text("{}")
    assert {row.federated for row in rows_of(folder).values()} == {NOT_MEASURED}
    assert all(row.meaning for row in rows_of(folder).values())


@pytest.mark.usefixtures("undrawn")
def test_the_report_shows_every_measure(folder):
    html = write_report(folder).read_text(encoding="utf-8")
    for row in measure_rows(read_run(folder)):
        assert row.meaning.replace("'", "&#39;") in html, row
