"""A run is completed when everything is written, and not before: wherever its finish is interrupted,
``resume`` finishes it and makes no round again."""

import json
import multiprocessing
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from disk import full, killed, watching
from safetensors.numpy import load_file
from test_methods import rows
from test_resume import assert_same_run, broken

from fedsa_lora import cli
from fedsa_lora.config.compose import load, read_config
from fedsa_lora.errors import RunError
from fedsa_lora.files import Held
from fedsa_lora.launch.federate import stopped
from fedsa_lora.launch.flower_log import COMPLETE, said_complete
from fedsa_lora.launch.resuming import to_resume
from fedsa_lora.runs import inprocess
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_json
from fedsa_lora.server import finish as finishing
from fedsa_lora.server.finish import against_experiment, finish_interrupted

WORDS = (
    "experiment=smoke", "federation.clients=2", "federation.rounds=1", "evaluation.local_only=false",
    "evaluation.before=false", "split=share_ab", "head=shared",
)  # fmt: skip
# What a finish writes, in this order; the last is the status that says "completed".
STAGES = [
    ("summary.json", ""), ("clients.csv", ""), ("backbone", ""), ("1", "adapters"), ("global", ""),
    ("bytes_by_round.png", ""), ("report.html", ""), ("status.json", "report.html"),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return run_in_process([*WORDS, f"run.dir={tmp_path_factory.mktemp('whole') / 'run'}"])


def state(run: Path) -> str:
    return str(read_json(run / "status.json")["state"])


def results(run: Path) -> dict[str, bytes]:
    """The bytes of what is the same however often a run is finished, wherever it lies."""
    files = [run / "rounds.csv", run / "clients.csv", run / "summary.json", *(run / "figures").iterdir()]
    files += [
        path
        for name in ("adapters", "backbone", "global")
        for path in (run / name).rglob("*")
        if path.is_file()
    ]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def assert_same_results(one: Path, two: Path) -> None:
    """Of two runs of one config: the same files with the same tensors and numbers, but for the seconds."""
    first, second = results(one), results(two)
    assert first.keys() == second.keys()
    for name in first:
        if name.endswith(".safetensors"):
            ours, theirs = load_file(one / name), load_file(two / name)
            assert ours.keys() == theirs.keys()
            assert all((ours[key] == theirs[key]).all() for key in ours), name
    summaries = [untimed(read_json(run / "summary.json")) for run in (one, two)]
    assert summaries[0] == summaries[1]


def untimed(value: object) -> object:
    """A summary without times, sizes of messages that have the digits of times, and the number of messages,
    in which rounds count that were made again."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key != "messages"}
        return {
            key: untimed(item) for key, item in kept.items() if "seconds" not in key and "bytes" not in key
        }
    return value


def left_over(run: Path) -> list[str]:
    return [path.name for path in run.rglob(".*") if path.name.endswith((".tmp", ".unfinished"))]


def run_until(words: list[str], folder: Path, name: str, after: str) -> None:
    with watching(folder, killed(name, after)):
        run_in_process(words)


def resume_until(folder: Path, name: str, after: str) -> None:
    with watching(folder, killed(name, after)):
        cli.main(["resume", str(folder)])


@pytest.mark.slow
@pytest.mark.case(36)
def test_a_run_killed_at_each_stage_of_its_finish_is_finished_by_resume_without_a_round_made_again(
    whole, tmp_path, capsys
):
    processes = multiprocessing.get_context("fork")  # with everything imported
    run = tmp_path / "run"
    for number, stage in enumerate(STAGES):
        work = (
            (resume_until, (run, *stage))
            if number
            else (run_until, ([*WORDS, f"run.dir={run}"], run, *stage))
        )
        process = processes.Process(target=work[0], args=work[1])
        process.start()
        process.join()
        assert process.exitcode == -9, stage
        assert state(run) == "running", stage
    assert cli.main(["watch", str(run), "--once"]) == 0
    assert "every round is done, the results are being written" in capsys.readouterr().out
    assert cli.main(["resume", str(run)]) == 0
    assert state(run) == "completed"
    assert left_over(run) == []
    assert "resumed" not in read_json(run / "environment.json"), "no round was made again"
    assert_same_run(run, whole)
    assert_same_results(run, whole)
    with pytest.raises(RunError, match="is complete"):
        to_resume(run)


@pytest.fixture
def finished(whole, tmp_path) -> Path:
    """A run of which the results can be made once more."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def finish_again(run: Path) -> bool:
    words = json.loads((run / "environment.json").read_text())["command"].split()[2:]
    return finish_interrupted(read_config(run), words)


@pytest.mark.case(36)
def test_a_finish_is_the_same_to_the_bit_however_often_it_is_made(finished):
    assert finish_again(finished)
    first, page = results(finished), (finished / "report.html").read_bytes()
    assert b'class="state completed">completed' in page
    assert finish_again(finished)
    assert results(finished) == first
    assert "global/adapter_model.safetensors" in first
    assert (finished / "report.html").read_bytes() == page
    shutil.rmtree(finished / "backbone")
    (finished / "adapters" / "0" / "adapter_config.json").write_text("half")
    assert finish_again(finished)
    assert results(finished) == first


@pytest.mark.usefixtures("undrawn")
@pytest.mark.case(36)
def test_the_status_is_written_last_and_the_report_says_completed_before(finished):
    with watching(finished) as watched:
        finish_again(finished)
    names = [path.name for path in watched.seen if path.parent == finished and not path.name.startswith(".")]
    assert names[-3:] == ["report.html", "metrics.prom", "status.json"]
    assert "This run had not ended" not in (finished / "report.html").read_text()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.case(36)
def test_a_finish_that_failed_is_a_failed_run_that_resume_finishes(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(finishing, "draw_all", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_in_process([*WORDS, f"run.dir={run}"])
    status = read_json(run / "status.json")
    assert (status["state"], status["reason"]) == ("failed", "ZeroDivisionError: division by zero")
    assert "This run failed" in (run / "report.html").read_text()
    assert 'state="failed"} 1' in (run / "metrics.prom").read_text()
    assert cli.main(["resume", str(run)]) == 0
    assert state(run) == "completed"
    assert "report:" in capsys.readouterr().out
    assert len(rows(run)) == 1


def test_a_client_that_quotes_the_last_words_of_a_run_does_not_complete_it(tmp_path):
    log = tmp_path / "flower.log"
    log.write_text(f"WARNING :   client 3 failed: {COMPLETE}: /runs/first\n")
    assert not said_complete(log)
    for line in ("INFO :      ", "INFO 2026-11-29 18:00:00,123:      "):
        log.write_text(f"INFO :      [ROUND 1]\n{line}{COMPLETE}: /runs/first\n")
        assert said_complete(log)
        assert not said_complete(log, log.stat().st_size), "that was the run before"


def test_a_server_app_that_comes_back_without_a_complete_run_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(inprocess, "server_app", lambda grid, context: None)
    with pytest.raises(RunError, match="is not recorded as completed"):
        run_in_process([*WORDS, f"run.dir={tmp_path / 'run'}"])


def test_a_run_of_which_no_client_is_here_is_not_evaluated_as_if_that_were_a_result(finished, capsys):
    shutil.rmtree(finished / "clients")
    assert cli.main(["evaluate", str(finished)]) == cli.EXIT_FAILED
    assert "holds no client states" in capsys.readouterr().err


def test_a_run_that_is_stopped_after_its_end_stays_completed(finished):
    with closing(Held(finished)) as begun:
        assert "was complete already" in stopped(begun, [], report=True)
    assert state(finished) == "completed"


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_said_completed_without_its_last_file_is_finished(finished):
    (finished / "report.html").unlink()
    assert cli.main(["resume", str(finished)]) == 0
    assert (finished / "report.html").is_file()


def test_a_run_with_missing_rounds_is_not_only_finished(tmp_path, monkeypatch):
    run = tmp_path / "run"
    words = [*WORDS, "federation.rounds=2", f"run.dir={run}"]
    broken(monkeypatch, words, "configure_fit", 2)
    assert not finish_interrupted(read_config(run), words)
    assert state(run) == "failed"


def test_a_last_checkpoint_that_was_altered_is_not_finished_on(finished):
    path = finished / "checkpoints" / "round-000001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match="no complete round with a valid checkpoint"):
        finish_again(finished)


def fails_at(run: Path, first: int, last: int | None) -> int:
    """Finish a run on a disk that is full at some of its writes, for good without a ``last``. Checks how it
    ends; returns the number of writes."""
    shutil.rmtree(run / "figures", ignore_errors=True)
    (run / "report.html").unlink(missing_ok=True)
    (run / "status.json").write_text('{"state": "running", "started": "2026-01-01T00:00:00+00:00"}')
    with watching(run, full(first, last)) as watched:
        try:
            finish_again(run)
        except RunError as error:
            told = str(error)
            assert "No space left on device" in told
            assert str(run) in told
            assert "check space" in told
            assert state(run) == "failed"
            return len(watched.seen)
    lost = watched.seen[first - 1 : last] if len(watched.seen) >= first else []
    lost = [path for path in lost if not copied(path, run)]
    kept = ("metrics.prom", "status.json")  # of the moment; overwritten where it is
    assert all(
        any(name in path.name for name in kept) or "logs" in (path.name, path.parent.name) for path in lost
    ), lost
    assert state(run) == "completed"
    assert (run / "report.html").is_file()
    assert len(list((run / "figures").iterdir())) == 4
    return len(watched.seen)


def copied(path: Path, run: Path) -> bool:
    """True of the weights of ``global/``, where they could not be linked and were copied in its place."""
    ours, theirs = (run / place / path.name for place in ("backbone", "global/backbone"))
    linked = path.match(".global.*/new/backbone/model.safetensors")
    return linked and theirs.read_bytes() == ours.read_bytes()


@pytest.mark.slow
@pytest.mark.case(40)
def test_a_disk_that_fills_up_during_the_finish_is_an_error_and_the_run_is_finished_when_there_is_room(
    finished, whole
):
    shutil.rmtree(finished / "figures")
    with watching(finished) as watched:
        finish_again(finished)
    names = [path.name for path in watched.seen]
    for name in ("summary.json", "README.md", "report.html"):
        last = len(names) - names[::-1].index(name)  # its new name, or its being made
        fails_at(finished, last, None)
    assert finish_again(finished)
    assert state(finished) == "completed"
    assert left_over(finished) == []
    assert_same_results(finished, whole)


@pytest.mark.faults
@pytest.mark.case(40)
@pytest.mark.parametrize("for_good", [True, False])
def test_whichever_write_of_a_finish_fails_the_run_is_never_completed_with_a_file_missing(
    finished, whole, for_good
):
    number = 1
    while fails_at(finished, number, None if for_good else number) >= number:
        number += 1
    assert number > 40
    assert finish_again(finished)
    assert_same_results(finished, whole)


def test_what_a_run_changed_of_its_experiment_has_both_values():
    words = "experiment=smoke split=share_ab train.lr=0.02 seed=7 run.dir=here 'title=Mine'"
    assert against_experiment(load(words), f"fedsa-lora run {words}") == [
        ("split.allow", "[A]", "[A, B]"), ("split.B", "local", "shared"), ("train.lr", "0.01", "0.02"),
    ]  # fmt: skip


def test_a_run_of_no_experiment_by_its_words_is_compared_with_the_one_that_it_is_called_after():
    words = (
        "task=snips model=tiny_bert name=smoke federation.clients=4 federation.train_examples=[16,32] "
        "federation.validation_examples=8 federation.test_examples=16 federation.rounds=3 train.lr=0.02 "
        "train.steps=3 train.batch_size=4"
    )
    assert against_experiment(load(words), f"fedsa-lora run {words}") == [("train.lr", "0.01", "0.02")]


@pytest.mark.parametrize(
    "words",
    ["experiment=smoke seed=3", "task=snips train.lr=0.02", "experiment=null task=snips train.lr=0.02"],
)
def test_a_run_that_changes_nothing_or_has_no_experiment_is_compared_with_none(words):
    assert against_experiment(load(words, default_dir="here"), f"fedsa-lora run {words}") == []
