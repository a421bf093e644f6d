"""A disk that fills up during a run: an error that names the file and what to do, a run that says so, and
nothing lost that was there."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from disk import full, watching
from test_methods import rows
from test_resume import assert_same_run

from fedsa_lora import cli
from fedsa_lora.errors import FedSAError, RunError
from fedsa_lora.files import append
from fedsa_lora.launch import federate as federating
from fedsa_lora.launch.federate import stage_app
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.interrupted import last_whole_round, write_status
from fedsa_lora.runs.reading import read_json

WORDS = (
    "experiment=smoke", "federation.clients=2", "federation.rounds=2", "evaluation.local_only=false",
    "evaluation.before=false", "run.keep_generations=9",
)  # fmt: skip
NO_SPACE = "No space left on device"
CHECK = "check space"  # what a client says of its disk, whose words stay in its own log
MAY_BE_LOST = ("log.jsonl", "server.jsonl", "metrics.prom")  # logs and metrics of the moment


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return run_in_process([*WORDS, f"run.dir={tmp_path_factory.mktemp('whole') / 'run'}"])


class SmallDisk:
    """A file system of its own, of a number of bytes."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self._mount(f"size={size}")

    def grow(self, size: int) -> None:
        self._mount(f"remount,size={size}")

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)], check=True)


@pytest.fixture
def mounted(tmp_path) -> Iterator[Path]:
    """A folder that a small disk can be mounted on."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        SmallDisk(folder, 1 << 20)
    except subprocess.CalledProcessError:
        pytest.skip("no file system can be mounted here")
    subprocess.run(["umount", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=False)


def used(folder: Path) -> int:
    """Bytes of a folder on a file system with pages of 4 KiB."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def fill_up(path: Path) -> None:
    """Let a file grow until its disk has no block left."""
    with suppress(RunError):
        while True:
            append(path, "x" * 4096)


def fill(mounted: Path, share: float, whole: Path) -> None:
    """Run on a disk with room for a share of a whole run: it fails; with more room it is resumed."""
    size = used(whole)
    disk, run = SmallDisk(mounted, int(size * share)), mounted / "run"
    with pytest.raises(FedSAError, match=CHECK):
        run_in_process([*WORDS, f"run.dir={run}"])
    status = run / "status.json"
    assert not status.exists() or read_json(status)["state"] == "failed"
    disk.grow(4 * size)
    if last_whole_round(run):
        words = read_json(run / "environment.json")["command"].split()[2:]
        if last_whole_round(run) == 2:
            assert cli.main(["resume", str(run)]) == 0
        else:
            run_in_process([*words, f"run.dir={run}", "run.resume=true"])
        assert read_json(status)["state"] == "completed"
        assert_same_run(run, whole)


@pytest.mark.slow
@pytest.mark.case(40)
def test_a_small_disk_is_an_error_and_with_more_room_the_run_is_resumed(mounted, whole):
    fill(mounted, 0.5, whole)


@pytest.mark.case(40)
def test_a_disk_without_a_free_block_still_gets_to_know_that_the_run_failed(mounted):
    disk = SmallDisk(mounted, 1 << 16)
    running = {"state": "running", "reason": None, "rounds": 2}
    write_status(mounted, running)
    fill_up(mounted / "rows")
    with pytest.raises(RunError, match="rows cannot be written"):
        append(mounted / "rows", "x")
    for reason in ("no space" * 2000, "short"):
        write_status(mounted, running | {"state": "failed", "reason": reason})
        told = read_json(mounted / "status.json")
        assert told["state"] == "failed"
        assert reason.startswith(told["reason"])
        assert len(told["reason"]) > 4
        assert (mounted / "status.json").stat().st_size <= 4096
    assert sorted(path.name for path in mounted.iterdir()) == ["rows", "status.json"]
    (mounted / "status.json").unlink()
    append(mounted / "rest", "x" * 4096)
    with pytest.raises(RunError, match=f"status.json cannot be written: {NO_SPACE}"):
        write_status(mounted, running)
    disk.grow(1 << 20)
    write_status(mounted, running)
    assert read_json(mounted / "status.json") == running


@pytest.mark.faults
@pytest.mark.case(40)
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.97])
def test_wherever_a_small_disk_is_full_the_run_is_resumed_with_more_room(mounted, whole, share):
    fill(mounted, share, whole)


def fails_once(folder: Path, number: int) -> int:
    """A run one write of which finds no space. Checks how it ends; returns how many writes there were."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    with watching(folder, full(number, number)) as watched:
        try:
            run_in_process([*WORDS, "federation.rounds=1", "run.report=false", f"run.dir={run}"])
        except FedSAError as error:
            told = str(error)
            assert CHECK in told, watched.seen[number - 1]
            if (run / "status.json").exists():
                assert read_json(run / "status.json")["state"] == "failed", watched.seen[number - 1]
            return len(watched.seen)
    if len(watched.seen) >= number:
        lost = watched.seen[number - 1]
        mere_log = any(name in lost.name for name in (*MAY_BE_LOST, "status.json")) or lost.name == "logs"
        (row,) = rows(run)
        without = row["remarks"] or row["fit_clients"] < 2  # a client whose disk was full took no part
        assert mere_log or (lost.is_relative_to(run / "clients") and without), lost
    assert read_json(run / "status.json")["state"] == "completed"
    for name in ("summary.json", "rounds.csv", "clients.csv", "checkpoints/round-000001.safetensors"):
        assert (run / name).is_file(), (name, watched.seen[number - 1 :][:1])
    return len(watched.seen)


@pytest.mark.faults
@pytest.mark.case(40)
def test_whichever_write_of_a_run_fails_it_is_an_error_or_a_log_that_is_lost(tmp_path):
    number = 1
    while fails_once(tmp_path, number) >= number:
        number += 1
    assert number > 60


@pytest.mark.case(40)
@pytest.mark.parametrize("number", [4, 10, 30, 60])
def test_some_writes_of_a_run_that_fail_are_errors_or_logs_that_are_lost(tmp_path, number):
    assert fails_once(tmp_path, number) >= number


@pytest.mark.case(40)
def test_an_app_that_cannot_be_staged_is_a_failed_run(tmp_path, monkeypatch):
    folder = tmp_path / "app"
    with watching(folder, full(3)), pytest.raises(RunError, match=rf"{folder} cannot be written: {NO_SPACE}"):
        stage_app(folder)
    monkeypatch.setattr(federating, "stage_app", lambda folder: append(tmp_path / "gone" / "file", "x"))
    run = tmp_path / "run"
    assert cli.main(["run", *WORDS, f"run.dir={run}"]) == cli.EXIT_FAILED
    status = read_json(run / "status.json")
    assert status["state"] == "failed"
    assert "cannot be written" in status["reason"]
