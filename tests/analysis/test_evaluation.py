"""What is measured with every client's data: by hand, and where the answer is known beforehand."""

import json

import numpy as np
import pytest

from fedsa_lora.analysis.evaluation import evaluate_run, renaming
from fedsa_lora.analysis.export import Exporter
from fedsa_lora.cli import main
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import RunError
from fedsa_lora.learning.training import predict
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.reading import read_jsonl
from fedsa_lora.server.build import skeleton


@pytest.fixture(scope="module")
def one_for_all(run_smoke):
    """All clients end with the same model, of whose start nothing is left."""
    return run_smoke("split=share_ab", "head=shared", "federation.rounds=2", "evaluation.every=0")


def last_rows(run) -> dict[str, dict]:
    return {row["client"]: row for row in read_jsonl(run / "clients.jsonl") if row["phase"] == "evaluate"}


def test_one_model_for_all_has_one_accuracy_on_the_union_the_weighted_mean_of_its_parts(one_for_all):
    union = evaluate_run(one_for_all, union=True)["union"]
    rows = last_rows(one_for_all)
    examples = [row["examples"] for row in rows.values()]
    expected = np.average([row["accuracy"] for row in rows.values()], weights=examples)
    assert union["examples"] == sum(examples)
    assert list(union["accuracy"].values()) == pytest.approx([expected] * 4)


def test_where_meanings_differ_a_model_is_right_when_it_names_the_true_class(run_smoke):
    run = run_smoke("federation.label_meaning=per_client", "head=frozen", "federation.rounds=2")
    union = evaluate_run(run, union=True)["union"]
    config = read_config(run)
    bench, task = build.workbench(config), config.task
    exporter = Exporter(config, RunDirectory(run, config), bench.model)
    meanings = {client: np.array(task.client_labels(client)) for client in "0123"}
    assert len({tuple(names) for names in meanings.values()}) == 4
    for client in "0123":
        bench.model.write(exporter.tensors(client))
        right = []
        for other in "0123":
            test = task.load_client(other).test
            answers = predict(bench.model, task, test, config.train).argmax(axis=1)
            right += list(meanings[client][answers] == meanings[other][test.labels])
        assert union["accuracy"][client] == pytest.approx(np.mean(right))


def test_a_newcomer_without_a_step_is_the_global_model(one_for_all):
    found = evaluate_run(one_for_all, newcomer_steps=0)["newcomer"]
    assert found["accuracy"] == {c: row["global_accuracy"] for c, row in last_rows(one_for_all).items()}
    assert found["took_part"] == dict.fromkeys("0123", True)


def test_a_newcomer_of_a_federation_that_shares_nothing_is_alone(run_smoke):
    run = run_smoke("split=local_only", "federation.rounds=1", "evaluation.local_only=false")
    still, moved = (evaluate_run(run, newcomer_steps=steps)["newcomer"] for steps in (0, 8))
    assert still["accuracy"] == still["alone"]
    assert moved["accuracy"] == moved["alone"]
    assert moved["alone"] != still["alone"]


def test_what_a_newcomer_is_given_is_nobodys_own(smoke_run):
    config = read_config(smoke_run)
    exporter = Exporter(config, RunDirectory(smoke_run, config), skeleton(config))
    given, own = exporter.own_model("0", own=False).common, exporter.tensors("0")
    assert all(np.array_equal(given[n], exporter.own_model("1", own=False).common[n]) for n in given)
    for spec in exporter.model.layout:
        assert np.array_equal(given[spec.name], own[spec.name]) == (spec.role == "A"), spec


def test_a_client_that_was_never_sampled_is_a_newcomer_in_earnest(run_smoke):
    sampled = ("strategy.fraction_fit=0.5", "strategy.min_fit_clients=2", "federation.rounds=1")
    run = run_smoke("head=shared", "evaluation.local_only=false", *sampled)
    took_part = evaluate_run(run, newcomer_steps=0)["newcomer"]["took_part"]
    fitted = {row["client"] for row in read_jsonl(run / "clients.jsonl") if row["phase"] == "fit"}
    assert {client for client, took in took_part.items() if took} == fitted
    assert 0 < len(fitted) < 4


def test_what_was_measured_before_stays_and_all_of_it_is_told(one_for_all, capsys):
    assert main(["evaluate", str(one_for_all), "--union"]) == 0
    assert main(["evaluate", str(one_for_all), "--newcomer-steps", "2"]) == 0
    found = json.loads((one_for_all / "evaluation.json").read_text())
    assert found.keys() == {"union", "newcomer"}
    assert found["newcomer"]["steps"] == 2
    said = capsys.readouterr().out
    assert f"union: mean accuracy {np.mean(list(found['union']['accuracy'].values())):.1%}" in said
    assert "evaluation.json" in said


def test_steps_below_zero_are_refused(smoke_run):
    with pytest.raises(RunError, match="-1 steps: expected 0 or more"):
        evaluate_run(smoke_run, newcomer_steps=-1)
    assert not (smoke_run / "evaluation.json").exists()


def test_where_no_client_lives_there_is_no_union(run_smoke, tmp_path):
    run = run_smoke("federation.rounds=1", "evaluation.local_only=false")
    (run / "clients").rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="not on the server of a deployment"):
        evaluate_run(run, union=True)
    assert not (run / "evaluation.json").exists()


def test_classes_are_found_by_their_names():
    theirs, ours = ("a", "b", "c"), ("c", "a", "b")
    found = renaming(theirs, ours)
    assert [ours[n] for n in found] == list(theirs)
    np.testing.assert_array_equal(renaming(ours, theirs)[found], range(3))
    np.testing.assert_array_equal(renaming(("x", "x"), ("x", "x")), range(2))


@pytest.mark.parametrize("ours", [("a", "c"), ("a", "a", "b"), ("b", "a", "b")])
def test_classes_that_names_do_not_tell_apart_are_refused(ours):
    with pytest.raises(RunError, match="is not defined"):
        renaming(("a", "b"), ours)
