"""Runs whose clients fail: what is lost, what stays to the bit as it was, and what is told of it."""

import json

import numpy as np
import pytest
from faulty_grid import run_with
from remarks import failures_of
from test_methods import checkpoint, rows
from test_resume import assert_same_run, broken

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import RunError
from fedsa_lora.learning.adapters import initial_state
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.seeds import generator
from fedsa_lora.server.build import skeleton

KEPT = ("run.keep_generations=9",)
DEADLINE = "federation.round_timeout=60"
# Nodes may be missing, as they never are in a simulation
DEPLOYED = ("federation.superlink=10.0.0.1:8000", "federation.insecure=true", "federation.wait_seconds=300")


def failing(*which, act: str = "raises"):
    """A plan in which (client, round) pairs fail while they train."""
    return lambda phase, client, round_, before: act if phase == "fit" and (client, round_) in which else None


def never(*clients, rounds=range(1, 99), act: str = "raises"):
    return failing(*((client, round_) for client in clients for round_ in rounds), act=act)


METHODS = {
    "server optimizer, both ways coded": ("strategy=fedadam", "codec=topk_int8", "downlink=topk_int8"),
    "merged into the backbone": ("split=share_ab", "strategy=fedex"),
    "importance": ("split=importance", "split.threshold=0.4"),
    "groups": ("clusters=updates", "clusters.after=1"),
    "Ditto": ("personalisation=ditto", "split=share_ab"),
    "experts": ("split=share_ab", "personalisation=experts"),
}  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.case(2)
@pytest.mark.parametrize("words", METHODS.values(), ids=METHODS)
def test_with_too_few_results_a_round_is_skipped_a_is_unchanged_to_the_bit_and_the_run_goes_on(
    monkeypatch, tmp_path, words
):
    plan = never("1", "2", "3", rounds=[3])
    run = run_with(monkeypatch, plan, [*KEPT, *words, "federation.rounds=5"], tmp_path / "run")
    before, after = checkpoint(run, 2), checkpoint(run, 3)
    assert all(np.array_equal(array, after.tensors[name]) for name, array in before.tensors.items())
    asked = ("shared/", "joining/")  # of the round, whether it counts or not
    passing = ("took_part/", "examples/", "skipped", "attendance/", "rejected/", "uploads", *asked)
    of_server = [name for name in before.memory if not name.startswith(passing)]
    assert [n for n in of_server if not np.array_equal(before.memory[n], after.memory[n])] == []
    assert any(not np.array_equal(a, checkpoint(run, 4).tensors[n]) for n, a in after.tensors.items())
    told = rows(run)
    assert [row["skipped"] for row in told] == [False, False, True, False, False]
    assert [row["evaluated"] for row in told] == [True, True, False, True, True]
    assert failures_of(told[2]) == [f"client {c}: OSError: no such device" for c in "123"]
    assert not any(failures_of(row) for row in told if row["round"] != 3), "every broadcast could be read"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.case(3)
def test_when_every_client_fails_again_and_again_a_is_unchanged_and_the_run_ends_with_who_and_why(
    monkeypatch, tmp_path
):
    words = [*KEPT, "federation.rounds=9", "federation.max_skipped=3", "run.report=true"]
    with pytest.raises(RunError, match=r"3 rounds in a row .*; 4 of 4 clients failed in round 3") as caught:
        run_with(monkeypatch, never(*"0123"), words, tmp_path / "run")
    last = str(caught.value).splitlines()[-1]
    assert last == "client 0: OSError: no such device (and 3 more: 1, 2, 3)"
    run = tmp_path / "run"
    config = read_config(run)
    start = initial_state(skeleton(config).layout, config.seed)
    assert checkpoint(run, 2).tensors.keys() < start.keys()
    for name, array in checkpoint(run, 2).tensors.items():
        assert np.array_equal(array, start[name])
    assert [row["skipped"] for row in rows(run)] == [True, True]
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed"
    assert "client 0: OSError: no such device" in status["reason"]
    assert "OSError: no such device" in (run / "report.html").read_text()


def test_a_run_without_a_round_that_counts_fails_however_short_it_is(monkeypatch, tmp_path):
    with pytest.raises(RunError, match=r"4 of 4 clients failed in round 1, and federation\.min_results=0\.5"):
        run_with(monkeypatch, never(*"0123"), ["federation.rounds=1"], tmp_path / "run")


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The run of the tests below in which nobody fails."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("calm") / "run"
        return run_with(patch, lambda *asked: None, [*KEPT, DEADLINE], folder)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("act", ["crashes", "twice"])
@pytest.mark.case(6)
def test_who_answers_when_asked_again_or_twice_counts_once_and_the_bits_are_those_of_a_calm_run(
    monkeypatch, tmp_path, calm, act
):
    def plan(phase, client, round_, before):
        return act if client in "12" and round_ == 2 and before == 0 else None

    assert_same_run(run_with(monkeypatch, plan, [*KEPT, DEADLINE], tmp_path / "run"), calm)


@pytest.mark.case(4)
def test_who_is_silent_is_late_its_round_goes_on_without_it_and_it_takes_part_in_the_next(
    monkeypatch, tmp_path
):
    plan = failing(("2", 2), act="silent")
    run = run_with(monkeypatch, plan, [*KEPT, DEADLINE, "downlink=topk_int8"], tmp_path / "run")
    told = rows(run)
    assert failures_of(told[1]) == ["client 2: late: no answer within 60 s"]
    assert [row["fit_clients"] for row in told] == [4, 3, 4]
    assert not failures_of(told[2])
    assert build.store(read_config(run), "2").rounds() == [1, 3]


@pytest.mark.usefixtures("undrawn")
def test_who_keeps_failing_is_left_out_for_a_while_returns_and_the_report_tells_when_and_why(
    monkeypatch, tmp_path
):
    plan = never("2", rounds=[1, 2])
    words = ["federation.rounds=6", "federation.exclude_after=2", "federation.exclude_rounds=2"]
    run = run_with(monkeypatch, plan, [*words, "run.report=true"], tmp_path / "run")
    told = rows(run)
    assert [row["asked"] for row in told] == [4, 4, 3, 3, 4, 4]
    assert [row["excluded"] for row in told] == [[], [], ["2"], ["2"], [], []]
    evaluated = [r["round"] for r in rows(run, "clients") if (r["phase"], r["client"]) == ("evaluate", "2")]
    assert evaluated == [1, 5, 6]
    page = (run / "report.html").read_text()
    assert '<td>error</td><td>1, 2</td><td class="words">OSError: no such device</td>' in page
    assert "Client 2 was excluded from rounds 3 to 4: it kept failing." in page
    summary = json.loads((run / "summary.json").read_text())
    counts = [summary[key] for key in ("failures", "excluded_clients", "skipped_rounds")]
    assert counts == [2, ["2"], 0]


def test_nobody_is_left_out_whom_the_minimum_needs(monkeypatch, tmp_path):
    plan = never("1", "2", "3", rounds=[1, 2])
    words = ["federation.rounds=4", "federation.exclude_after=1", "federation.exclude_rounds=9"]
    run = run_with(monkeypatch, plan, words, tmp_path / "run")
    assert [row["asked"] for row in rows(run)] == [4, 4, 4, 4]
    assert [row["skipped"] for row in rows(run)] == [True, True, False, False]
    evaluated = [row["client"] for row in rows(run, "clients") if row["phase"] == "evaluate"]
    assert evaluated == [*"0123"] * 2, "who answers is back"


UNSTEADY = {
    ("1", 1): "raises",
    ("1", 2): "raises",
    ("0", 4): "raises",
    ("2", 4): "raises",
    ("3", 4): "crashes",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", ["server optimizer, both ways coded", "importance", "experts"])
@pytest.mark.parametrize("stops", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_that_is_resumed_among_failures_has_the_bits_of_one_that_was_not_broken_off(
    monkeypatch, tmp_path, method, stops
):
    def plan(phase, client, round_, before):
        return UNSTEADY.get((client, round_)) if phase == "fit" and before == 0 else None

    words = [*KEPT, *METHODS[method], "federation.rounds=6", "federation.exclude_after=2",
             "federation.exclude_rounds=3", "federation.min_results=0.75"]  # fmt: skip
    whole = run_with(monkeypatch, plan, words, tmp_path / "whole")
    assert [row["skipped"] for row in rows(whole)] == [False, False, False, True, False, False]
    assert [row["asked"] for row in rows(whole)] == [4, 4, 3, 3, 3, 4]
    again = tmp_path / "broken"
    quiet = ("evaluation.local_only=false", "evaluation.before=false", "run.report=false")
    asked = ["experiment=smoke", *quiet, *words, f"run.dir={again}"]
    broken(monkeypatch, asked, "aggregate_fit", stops)
    assert [row["round"] for row in rows(again)] == [*range(1, stops)]
    run_in_process([*asked, "run.resume=true"])
    assert_same_run(again, whole)


@pytest.mark.usefixtures("undrawn")
def test_with_fewer_nodes_than_clients_a_run_goes_on_with_those_that_are_there_and_says_so(
    monkeypatch, tmp_path
):
    def plan(phase, client, round_, before):
        return "leaves" if (client, round_) == ("0", 2) else None

    words = [*KEPT, *DEPLOYED, "run.report=true"]
    run = run_with(monkeypatch, plan, words, tmp_path / "run", missing="3")
    told = rows(run)
    assert [row["present"] for row in told] == [3, 3, 2]
    assert [row["fit_clients"] for row in told] == [3, 2, 2]
    assert failures_of(told[1]) == ["client 0: its node is gone"]
    page = (run / "report.html").read_text()
    assert "In rounds 1 to 2, 3 of 4 clients were connected." in page
    assert "In round 3, 2 of 4 clients were connected." in page
    config = read_config(run)
    assert Exporter(config, RunDirectory(run, config), skeleton(config)).tensors("3")
    words = [*DEPLOYED, "federation.min_clients=1"]
    with pytest.raises(RunError, match=r"3 of 4 clients are connected after 300 s.*federation\.min_clients"):
        run_with(monkeypatch, plan, words, tmp_path / "strict", missing="3")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.case(34)
def test_a_node_that_does_not_say_who_it_is_is_left_out_and_named_in_every_round_and_in_the_report(
    monkeypatch, tmp_path
):
    words = [*KEPT, *DEPLOYED, "run.report=true"]
    run = run_with(monkeypatch, lambda *asked: None, words, tmp_path / "run", silent="2")
    told = "node 3 has not reported its client id: it does not answer"
    assert [(row["present"], row["fit_clients"], failures_of(row)) for row in rows(run)] == [
        (3, 3, [told])
    ] * 3
    page = (run / "report.html").read_text()
    assert told in page
    assert "Client names were not verified" in page
    with pytest.raises(RunError, match=rf"3 of 4 clients reported their client id, 1 nodes did not\n{told}"):
        run_with(
            monkeypatch, lambda *asked: None, [*words, "federation.min_clients=1"], tmp_path / "x", silent="2"
        )


def test_when_nodes_that_left_make_them_too_few_rounds_are_skipped_and_then_the_run_ends(
    monkeypatch, tmp_path
):
    plan = never("1", "2", "3", rounds=[2], act="leaves")
    words = [*KEPT, *DEPLOYED, "federation.rounds=9", "federation.max_skipped=2"]
    with pytest.raises(RunError, match=r"2 rounds in a row.*0 of 1 clients failed in round 3, .* asks for 2"):
        run_with(monkeypatch, plan, words, tmp_path / "run")
    assert [row["skipped"] for row in rows(tmp_path / "run")] == [False, True]


def test_more_are_sampled_than_a_round_needs_so_that_enough_answer(monkeypatch, tmp_path):
    words = ["strategy.fraction_fit=0.5", "federation.min_results=1", "federation.max_skipped=1"]
    fails = never("0", "3")
    with pytest.raises(RunError, match="asks for 2 results"):
        run_with(monkeypatch, fails, words, tmp_path / "two")
    run = run_with(monkeypatch, fails, [*words, "federation.over_select=2"], tmp_path / "four")
    assert [(row["asked"], row["fit_clients"]) for row in rows(run)] == [(4, 2)] * 3


def test_an_evaluation_that_not_all_answer_is_of_those_that_do_and_without_any_there_is_no_result(
    monkeypatch, tmp_path
):
    def fails(*clients):
        return lambda phase, client, round_, before: (
            "raises" if phase == "evaluate" and client in clients else None
        )

    run = run_with(monkeypatch, fails("0", "1", "2"), [], tmp_path / "one")
    last = [r for r in rows(run, "clients") if (r["phase"], r["round"]) == ("evaluate", 3)]
    assert [row["client"] for row in last] == ["3"]
    assert rows(run)[-1]["accuracy"] == last[0]["accuracy"]
    assert len(failures_of(rows(run)[-1])) == 3
    with pytest.raises(RunError, match="no client answered the last evaluation\nclient 0: OSError"):
        run_with(monkeypatch, fails(*"0123"), [], tmp_path / "none")
    assert [row["evaluated"] for row in rows(tmp_path / "none")] == [False, False]


@pytest.mark.faults
@pytest.mark.case(1)
def test_with_three_of_ten_clients_dropping_out_at_random_as_much_training_is_at_most_a_point_worse(
    monkeypatch, tmp_path
):
    """The quickstart, on its pretrained encoder and real text: 12 calm rounds against 17 in which each client
    drops out of 30 %, so that it trains in 11.9; a round with fewer than five is skipped. The mean of three
    draws of who drops out when: one has a standard deviation of a point."""

    def dropping(draw: int, probability: float, rounds: int):
        def drops(phase, client, round_, before):
            dropped = generator(draw, "drops", client, round_).random() < probability
            return "raises" if phase == "fit" and dropped else None

        words = ["experiment=quickstart", "evaluation.every=0", f"federation.rounds={rounds}"]
        told = rows(run_with(monkeypatch, drops, words, tmp_path / f"{draw}-{probability}"))
        assert len(told) == rounds
        return told[-1]["accuracy"], np.mean([row["fit_clients"] for row in told]) / 10

    calm, everyone = dropping(0, 0.0, 12)
    accuracies, took_part = zip(*(dropping(draw, 0.3, 17) for draw in range(3)), strict=True)
    assert everyone == 1
    assert all(0.6 <= part <= 0.8 for part in took_part)
    assert np.mean(accuracies) >= calm - 0.01
