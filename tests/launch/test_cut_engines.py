"""Split learning in several processes: the bits of one process, and what becomes of one that is killed."""

import pytest
from remarks import failures_of
from test_engines import in_processes
from test_flwr_run import assert_same_bits, command_line, lines

from fedsa_lora.runs.inprocess import run_in_process
from strategies.round.reasons import KILLED

pytestmark = pytest.mark.slow
BRIEF = (
    "experiment=split/tiny", "federation.rounds=2", "train.steps=3", "cut.micro_batches=2",
    "run.report=false", "federation.test_examples=6", "run.keep_generations=9",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run in one process."""
    return run_in_process([*BRIEF, f"run.dir={tmp_path_factory.mktemp('cut') / 'run'}"])


@pytest.mark.parametrize("count", [1, 2])
def test_whichever_process_answers_the_next_message_the_bits_are_those_of_one(count, tmp_path, whole):
    assert in_processes(count, [*BRIEF], tmp_path / "run").state == "completed"
    assert_same_bits(tmp_path / "run", whole)


def test_so_they_are_through_ray(tmp_path, whole):
    ended = command_line("run", *BRIEF, "machine.engine=ray", f"run.dir={tmp_path / 'run'}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert_same_bits(tmp_path / "run", whole)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_client_that_is_killed_at_a_step_is_asked_again_or_left_out(retries, tmp_path, monkeypatch, whole):
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "killer")
    deadly = ("++task._target_=killer.DeadlyTask", f"++task.once={tmp_path / 'killed'}")
    run, words = tmp_path / "run", [*BRIEF, *deadly, f"federation.retries={retries}"]
    assert in_processes(2, words, run).state == "completed"
    assert (tmp_path / "killed").exists()
    if retries:
        assert_same_bits(run, whole)
        return
    first, second = lines(run, "rounds.jsonl")
    (failure,) = failures_of(first)
    assert failure.endswith(KILLED)
    assert [row["fit_clients"] for row in (first, second)] == [2, 3]
