"""Clients that fail in a real `flwr run`, by the command that starts it."""

import json
from pathlib import Path

import numpy as np
import pytest
from remarks import failures_of
from test_flwr_run import command_line, lines, states

from fedsa_lora.config.compose import read_config
from fedsa_lora.learning.adapters import initial_state
from fedsa_lora.runs.outcomes import remarks
from fedsa_lora.runs.reading import read_run
from fedsa_lora.server.build import skeleton
from strategies.round.reasons import KILLED

TESTS = Path(__file__).resolve().parent
BRIEF = ("experiment=smoke", "evaluation.local_only=false", "evaluation.before=false", "evaluation.every=0")
DEADLINE = 30.0


@pytest.mark.faults
@pytest.mark.case(3)
def test_when_every_client_fails_in_every_round_the_command_says_so_and_a_is_unchanged(tmp_path):
    run = tmp_path / "run"
    ended = command_line("run", *BRIEF, "federation.rounds=5", "train.lr=1e30", f"run.dir={run}")
    assert ended.returncode == 1
    assert "3 rounds in a row had too few results; 4 of 4 clients failed in round 3" in ended.stderr
    assert "client 0: TrainingError: the loss became" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    assert [row["skipped"] for row in lines(run, "rounds.jsonl")] == [True, True]
    config = read_config(run)
    start = initial_state(skeleton(config).layout, config.seed)
    kept = states(run)
    assert [key for key in kept if key[0] != "A"] == []
    for round_ in (1, 2):
        shared = {name: a for name, a in kept["A", round_].items() if not name.startswith("memory/")}
        assert shared
        assert all(np.array_equal(array, start[name]) for name, array in shared.items())


@pytest.mark.faults
@pytest.mark.case(4)
def test_a_straggler_beyond_the_deadline_is_ignored_and_its_round_ends_with_the_deadline(
    tmp_path, monkeypatch
):
    """The straggler holds one of two processes; the others have the other one."""
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "straggler")
    monkeypatch.setenv("PYTHONPATH", f"{TESTS.parents[1]}:{TESTS}")
    monkeypatch.syspath_prepend(str(TESTS))
    run = tmp_path / "run"
    slow = ["++personalisation._target_=straggler.Straggler", "++personalisation.seconds=45"]
    words = [*slow, f"federation.round_timeout={DEADLINE}", "federation.rounds=3", f"run.dir={run}"]
    ended = command_line("run", *BRIEF, *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    first, second, third = lines(run, "rounds.jsonl")
    assert first["fit_clients"] == 4
    assert second["fit_clients"] == 3
    assert failures_of(second) == ["client 1: late: no answer within 30 s"]
    assert DEADLINE <= second["fit_seconds"] <= 1.1 * DEADLINE
    assert third["fit_clients"] >= 3
    told = {remark.reason: remark for remark in remarks(read_run(run))}
    assert 2 in told["late: no answer within 30 s"].rounds
    assert {remark.client for remark in told.values()} == {"1"}, "which may still be at it in the third round"
    assert "late: no answer within 30 s" in (run / "report.html").read_text()


@pytest.mark.slow
def test_killed_processes_of_clients_are_the_last_line_in_plain_words(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "killer")
    monkeypatch.setenv("PYTHONPATH", f"{TESTS.parents[1]}:{TESTS}")
    monkeypatch.syspath_prepend(str(TESTS))
    words = ["++personalisation._target_=killer.Killer", "federation.rounds=1", "federation.retries=0"]
    ended = command_line("run", *BRIEF, *words, f"run.dir={tmp_path / 'run'}")
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1] == f"client 0: {KILLED} (and 3 more: 1, 2, 3)"
