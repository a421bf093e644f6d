"""A client too small for a held-out part trains like the others in every round, and is left out of the
measurement alone."""

import csv
import json
from pathlib import Path

import pytest

from fedsa_lora.analysis.evaluation import evaluate_run
from fedsa_lora.analysis.export import Exporter
from fedsa_lora.analysis.reevaluate import reevaluate
from fedsa_lora.cli import main
from fedsa_lora.compare.measure import measured, validation
from fedsa_lora.compare.probed import majority
from fedsa_lora.config.compose import load
from fedsa_lora.errors import DataError, RunError
from fedsa_lora.launch.plan import make_plan
from fedsa_lora.runs import load_run
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl

LONE = "3"  # the client with one row
METHODS = {
    "FedSA": (),
    "importance": ("split=importance", "split.threshold=0.4"),
    "groups": ("clusters=updates", "clusters.after=1"),
    "counts of a shared head": ("head=shared",),
    "weights by losses": ("strategy=qfedavg",),
    "experts": ("split=share_ab", "personalisation=experts"),
    "attacked": ("attack=backdoor", "attack.clients=[0]"),
}


def write_rows(path: Path, sizes: dict[str, int]) -> Path:
    """A file with so many rows of each owner."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "who"])
        for who, size in sizes.items():
            for n in range(size):
                rows.writerow([f"please look at number {n} of {who}", ("it", "billing")[n % 2], who])
    return path


def words(path: Path, clients: int = 4, **held_out: int) -> list[str]:
    validation = held_out.get("validation", 2)
    return [
        "task=text", f"task.dataset={path}", "task.group=who", "partition=natural", "federation.rounds=2",
        f"federation.clients={clients}", "federation.train_examples=null",
        f"federation.validation_examples={validation}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    sizes = {"ann": 12, "bob": 14, "cid": 16, "dan": 1}
    return write_rows(tmp_path_factory.mktemp("data") / "data.csv", sizes)


@pytest.fixture(scope="module")
def run(run_smoke, data) -> Path:
    return run_smoke(*words(data), "run.report=true")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("method", METHODS)
def test_it_trains_in_every_round_and_is_no_failure_whatever_the_method(run_smoke, data, method):
    asked = (*METHODS[method], "federation.exclude_after=1", "evaluation.before_each=true")
    run = run_smoke(*words(data), *asked)
    rows, summary = read_jsonl(run / "clients.jsonl"), json.loads((run / "summary.json").read_text())
    trained = {(row["round"], row["client"]) for row in rows if row["phase"] == "fit"}
    assert trained == {(round_, client) for round_ in (1, 2) for client in "0123"}
    assert (summary["failures"], summary["excluded_clients"], summary["skipped_rounds"]) == (0, [], 0)
    assert (summary["measured"], summary["unmeasured"]) == (3, [LONE])
    assert summary["personalised"]["clients"] == summary["before_aggregation"]["clients"] == 3
    assert summary["local_only"]["clients"] == summary["majority"]["clients"] == 3
    for row in rows:
        assert (row["measured"] == 0) == (row["client"] == LONE)
        assert ("accuracy" in row or "accuracy_before" in row) == (row["client"] != LONE)


def test_the_table_and_the_report_say_of_how_many_clients_they_are_and_why(run, capsys):
    assert main(["watch", str(run), "--once"]) == 0
    page = (run / "report.html").read_text()
    assert "3 of 4 clients" in page
    assert (
        f"1 client without test examples took part like the others and could not be measured: {LONE}." in page
    )
    assert main(["evaluate", str(run), "--union", "--newcomer-steps", "1"]) == 0
    said = capsys.readouterr().out
    assert "failures: none" in said
    assert "union: mean accuracy" in said


def test_it_has_a_model_and_is_asked_about_the_examples_of_the_others(run):
    found = {row.client: row for row in reevaluate(run)}
    assert (found[LONE].value, found[LONE].examples, found[LONE].recorded) == (None, 0, None)
    assert all(found[client].value == found[client].recorded for client in "012")
    measures = evaluate_run(run, union=True, newcomer_steps=0)
    assert sorted(measures["union"]["accuracy"]) == list("0123")
    assert sorted(measures["newcomer"]["accuracy"]) == list("012")
    outcome = load_run(run).outcomes.loc[LONE]
    assert (outcome["rounds"], outcome["failures"], outcome["test"]) == (2, 0, 0)
    assert outcome[["personalised", "gain", "harmed"]].isna().all()


def test_whether_it_was_harmed_is_not_known_and_it_has_no_predictions(run):
    loaded = load_run(run)
    assert loaded.outcomes["harmed"].notna().sum() == loaded.summary["clients_compared"] == 3
    assert loaded.outcomes["harmed"].mean() == pytest.approx(loaded.summary["share_harmed"])
    with pytest.raises(RunError, match=r"no predictions of client '3'; available: \['0', '1', '2'\]"):
        loaded.confusion(LONE)


def test_it_is_no_part_of_what_a_comparison_or_an_advice_measures(run):
    assert sorted(measured(run)["accuracy"]) == sorted(validation(run)) == list("012")
    floor = majority(run)
    assert sorted(floor) == list("012")
    assert all(0 <= value <= 1 for value in floor.values())


def test_on_the_validation_part_those_are_measured_that_have_one(run_smoke, tmp_path):
    path = write_rows(tmp_path / "data.csv", {"ann": 12, "bob": 14, "cid": 2})  # of two rows one is for test
    run = run_smoke(*words(path, 3), "evaluation.part=validation")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["measured"], summary["unmeasured"], summary["part"]) == (2, ["2"], "validation")
    assert summary["failures"] == 0


def test_where_nobody_has_a_test_part_the_run_is_refused_before_it_begins(tmp_path):
    path = write_rows(tmp_path / "data.csv", {"ann": 1, "bob": 1})
    path.write_text(path.read_text().replace("it,bob", "billing,bob"))
    settings = ["experiment=smoke", *words(path, 2, validation=0), f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(DataError, match="no client has test examples, so nothing could be measured"):
        make_plan(load(settings))
    with pytest.raises(DataError, match="no client has test examples"):
        run_in_process(settings)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_where_nobody_has_a_validation_part_a_comparison_has_nothing_to_choose_by(run_smoke, tmp_path):
    path = write_rows(tmp_path / "data.csv", {"ann": 2, "bob": 2})
    run = run_smoke(*words(path, 2), "evaluation.local_only=false")
    with pytest.raises(DataError, match="no client has validation examples"):
        validation(run)


def test_a_union_of_nothing_and_newcomers_without_a_test_part_are_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Exporter, "clients", lambda self: [LONE])
    with pytest.raises(RunError, match="no client has test examples: their union is empty"):
        evaluate_run(run, union=True)
