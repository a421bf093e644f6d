"""A simulation in processes of this machine: the bits of one process, however many they are, and how each
may end."""

import json
import os
import shlex
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from remarks import failures_of
from test_flwr_run import assert_same_bits, lines
from test_resume import assert_same_run
from under_way import under_way

from fedsa_lora import cli
from fedsa_lora.config.compose import load
from fedsa_lora.config.paths import places
from fedsa_lora.launch import local_run, workers
from fedsa_lora.launch.flower_run import Outcome
from fedsa_lora.launch.local_run import LocalRun
from fedsa_lora.launch.size import Processes
from fedsa_lora.runs import inprocess
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.interrupted import last_whole_round
from strategies.round.reasons import KILLED

BRIEF = ("experiment=smoke", "evaluation.local_only=false", "evaluation.before=false", "run.report=false")
SAMPLED = [
    "experiment=smoke", "federation.clients=6", "federation.rounds=3", "strategy.fraction_fit=0.5",
    "run.report=false", "run.keep_generations=9",
]  # fmt: skip
CODED = ["split=importance", "codec=topk_int8", "downlink=int8", "strategy=fedadam"]
TOGETHER = ["federation.clients_per_node=3"]


def in_processes(count: int, words: list[str], run: Path) -> Outcome:
    """Play a run in so many processes that serve clients."""
    config = load([*words, f"run.dir={run}"])
    RunDirectory.announce(config)
    text = shlex.join([*words, *places(config)])
    with LocalRun(config, text, Processes(count, config.federation.nodes), run / "flower.log") as local:
        return local.follow(lambda: None)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        pytest.param(1, SAMPLED, id="one", marks=pytest.mark.slow),
        pytest.param(2, SAMPLED, id="two", marks=pytest.mark.slow),
        pytest.param(2, [*SAMPLED, *CODED, *TOGETHER], id="coded"),
    ],
)
def test_however_many_processes_serve_clients_the_bits_are_those_of_one_process(count, words, tmp_path):
    assert in_processes(count, words, tmp_path / "run") == Outcome("completed", "")
    here = run_in_process([word for word in words if word not in TOGETHER] + [f"run.dir={tmp_path / 'one'}"])
    assert_same_bits(tmp_path / "run", here)


def test_processes_are_forked_only_where_that_is_safe(monkeypatch):
    monkeypatch.setattr(workers.sys, "platform", "linux")
    assert workers.context(threads=1).get_start_method() == "fork"
    assert workers.context(threads=2).get_start_method() == "spawn"
    monkeypatch.setattr(workers.sys, "platform", "darwin")
    assert workers.context(threads=1).get_start_method() == "spawn"


@pytest.mark.slow
def test_processes_of_several_threads_start_anew_and_do_not_hang(tmp_path):
    assert in_processes(2, [*BRIEF, "machine.threads=2"], tmp_path / "run") == Outcome("completed", "")


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_neighbours_that_are_answered_at_the_same_time_give_the_same_bits(count, tmp_path, monkeypatch):
    words = [*SAMPLED, "personalisation=ditto", "evaluation.local_only=true"]
    plain = run_in_process([*words, f"run.dir={tmp_path / 'plain'}"])
    run = tmp_path / "run"
    if count:
        monkeypatch.setattr(local_run, "together", lambda config: 4)
        assert in_processes(count, words, run) == Outcome("completed", "")
    else:
        monkeypatch.setattr(inprocess, "together", lambda config: 4)
        run_in_process([*words, f"run.dir={run}"])
    assert_same_bits(run, plain)


@pytest.fixture
def _killer(monkeypatch) -> None:
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "killer")


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("_killer")
@pytest.mark.parametrize("count", [1, 2])
def test_a_client_whose_process_is_killed_fails_and_a_new_process_serves_the_others(count, tmp_path):
    words = ["++personalisation._target_=killer.Killer", "++personalisation.client='1'"]
    run = tmp_path / "run"
    ended = in_processes(count, [*BRIEF, *words, "federation.rounds=2", "federation.retries=0"], run)
    assert ended.state == "completed"
    for row in lines(run, "rounds.jsonl"):
        assert row["fit_clients"] == 3
        assert failures_of(row) == [f"client 1: {KILLED}"]


@pytest.mark.slow
@pytest.mark.usefixtures("_killer")
def test_a_client_whose_process_was_killed_once_is_asked_again_to_the_same_bits(tmp_path):
    words = ["++personalisation._target_=killer.Killer", f"++personalisation.once={tmp_path / 'killed'}"]
    assert in_processes(2, [*BRIEF, *words], tmp_path / "run").state == "completed"
    assert_same_bits(tmp_path / "run", run_in_process([*BRIEF, *words, f"run.dir={tmp_path / 'whole'}"]))


def test_a_run_that_fails_before_it_begins_tells_why_with_every_line(tmp_path):
    run = tmp_path / "run"
    run_in_process([*BRIEF, "federation.rounds=1", f"run.dir={run}"])
    config = load([*BRIEF, f"run.dir={run}"])
    with LocalRun(config, shlex.join(BRIEF), Processes(2, 4), tmp_path / "log") as local:
        ended = local.follow(lambda: None)
    assert (ended.state, ended.details.partition(":")[0]) == ("failed", "RunError")
    assert f"{run} already holds a run" in ended.details
    assert "Traceback" in (tmp_path / "log").read_text()


def processes_of(command: psutil.Process) -> tuple[psutil.Process, list[psutil.Process]]:
    """The process that plays the server, and those that serve clients."""
    (server,) = command.children()
    return server, server.children()


def assert_gone(processes: list[psutil.Process]) -> None:
    """They end by themselves, without anybody's help."""
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        time.sleep(0.05)


@pytest.mark.faults
@pytest.mark.case(19)
@pytest.mark.parametrize("victim", ["command", "server"])
def test_kill_9_of_the_command_or_the_server_leaves_no_process_and_a_run_that_is_resumed(tmp_path, victim):
    run = tmp_path / "run"
    brief = [*BRIEF, "machine.cohort=2"]
    words = [*brief, f"run.dir={run}"]
    with under_way(run, [*words, "federation.rounds=999"]) as command:
        server, clients = processes_of(psutil.Process(command.pid))
        os.kill(command.pid if victim == "command" else server.pid, signal.SIGKILL)
        told = command.stderr.read()
        code = command.wait()
    with suppress(psutil.NoSuchProcess):
        assert_gone([server, *clients])
    status = json.loads((run / "status.json").read_text())
    if victim == "server":
        assert code == cli.EXIT_FAILED
        assert "the process of the server was killed by signal 9, perhaps out of memory" in told
        assert status["state"] == "failed"
    else:
        assert (code, status["state"]) == (-signal.SIGKILL, "running")
    rounds = f"federation.rounds={last_whole_round(run) + 1}"
    run_in_process([*words, rounds, "run.resume=true"])
    assert_same_run(run, run_in_process([*brief, rounds, f"run.dir={tmp_path / 'whole'}"]))


def test_a_process_of_clients_that_is_killed_while_idle_is_replaced(tmp_path, monkeypatch):
    """Nobody was being served, so nobody failed."""
    ended = []

    class Watched(workers.Worker):
        def answers(self, messages):
            if not ended:
                ended.append(self._process.pid)
                self._process.kill()
                self._process.join()
            return super().answers(messages)

    monkeypatch.setattr(workers, "Worker", Watched)
    assert in_processes(2, [*BRIEF, "federation.rounds=2"], tmp_path / "run").state == "completed"
    assert all(row["fit_clients"] == 4 for row in lines(tmp_path / "run", "rounds.jsonl"))
