"""Two runs that meet in one store or run directory: one is refused, by name, and the other feels nothing."""

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from test_client import Desk
from test_resume import assert_same_run, broken

from fedsa_lora import files
from fedsa_lora.config.compose import load
from fedsa_lora.errors import RunError, StoreError
from fedsa_lora.exchange import wire
from fedsa_lora.launch.resuming import to_resume
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.interrupted import close
from fedsa_lora.store import DirectoryStore

pytestmark = pytest.mark.case(27)
SHORT = ("experiment=smoke", "run.report=false", "federation.rounds=3", "evaluation.local_only=false")
AT_WORK = """
import sys, time
from pathlib import Path
from fedsa_lora.files import locked
with locked(Path(sys.argv[1]), ValueError):
    print("at work", flush=True)
    time.sleep(600)
"""


@contextmanager
def at_work_in(folder):
    """Another process that has a folder for itself. It is killed at the end."""
    command = [sys.executable, "-c", AT_WORK, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "at work\n"
        try:
            yield other.pid
        finally:
            other.send_signal(signal.SIGKILL)


TOLD = ("egress.jsonl", "log.jsonl", "metrics.prom")  # of what happened, also of what was refused


def content(folder) -> dict[str, bytes]:
    files_ = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in TOLD]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files_}


def test_a_client_in_whose_store_another_process_is_at_work_answers_so_and_goes_on_when_it_is_killed(
    tmp_path, caplog
):
    desk, alone = Desk(tmp_path / "run"), Desk(tmp_path / "alone")
    for each in (desk, alone):
        each.fit("0", 1)
    folder = desk.store("0").folder
    before = content(folder)
    with at_work_in(folder) as process:
        update, count, header = desk.fit("0", 2)
        assert header.error.startswith("StoreError: its store is in use by another process: wait until")
        assert re.search(rf"\b0 is in use by process {process}: .*own store", caplog.text)
        assert (update.size, count, content(folder)) == (0, 0, before)
        assert not desk.fit("1", 1)[2].error, "another client is another folder"
    assert desk.fit("0", 2)[0].tobytes() == alone.fit("0", 2)[0].tobytes()


def test_a_run_that_comes_upon_the_state_of_another_is_refused_and_the_other_goes_on_to_the_same_bits(
    tmp_path, caplog
):
    desk, alone = Desk(tmp_path / "run", "codec=topk"), Desk(tmp_path / "alone", "codec=topk")
    for each in (desk, alone):
        each.fit("0", 1, run="aaaa")
    before = content(desk.store("0").folder)
    for round_ in (1, 2):
        update, count, header = desk.fit("0", round_, run="bbbb")
        assert header.error.startswith("StoreError: its store holds the state of another run or experiment")
        assert "round-000001.safetensors belongs to run 'aaaa', this is 'bbbb'" in caplog.text
        assert (update.size, count) == (0, 0)
        metrics = desk.client("0").evaluate(*desk.ask("0", round_, run="bbbb"))[2]
        assert "the state of another run" in wire.read_header(metrics, wire.UploadHeader).error
    assert content(desk.store("0").folder) == before
    assert desk.fit("0", 2, run="aaaa")[0].tobytes() == alone.fit("0", 2, run="aaaa")[0].tobytes()


def test_a_second_run_over_the_store_of_a_first_is_refused_and_changes_nothing_in_it(tmp_path):
    words = [*SHORT, f"run.store={tmp_path / 'store'}"]
    run_in_process([*words, f"run.dir={tmp_path / 'one'}"])
    before = content(tmp_path / "store")
    with pytest.raises(RunError, match="client 0: StoreError: its store holds the state of another run"):
        run_in_process([*words, f"run.dir={tmp_path / 'two'}"])
    assert content(tmp_path / "store") == before


def test_a_resumed_run_is_at_home_in_its_store(tmp_path, monkeypatch):
    words = [*SHORT, f"run.store={tmp_path / 'store'}", f"run.dir={tmp_path / 'run'}"]
    broken(monkeypatch, words, "aggregate_fit", 3)
    run_in_process([*words, "run.resume=true"])
    whole = run_in_process([*SHORT, f"run.dir={tmp_path / 'whole'}"])
    (tmp_path / "run" / "clients").symlink_to(tmp_path / "store")
    assert_same_run(tmp_path / "run", whole)


def test_a_run_directory_that_a_server_is_at_work_in_is_refused_to_another_and_left_as_it_is(
    tmp_path, monkeypatch
):
    words = [*SHORT, f"run.dir={tmp_path / 'run'}"]
    broken(monkeypatch, words, "aggregate_fit", 2)
    before = content(tmp_path / "run")
    with at_work_in(tmp_path / "run") as process:
        for attempt in (
            lambda: run_in_process([*words, "run.resume=true"]),
            lambda: RunDirectory.resume(load(words), "test"),
            lambda: to_resume(tmp_path / "run"),
        ):
            with pytest.raises(
                RunError, match=f"{tmp_path}/run is in use by process {process}: .*another run.dir"
            ):
                attempt()
        close(tmp_path / "run", "failed", "of a run that was not let in")
        assert content(tmp_path / "run") == before
    run_in_process([*words, "run.resume=true"])
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "completed"


def test_a_store_is_locked_to_its_own_process_as_well(tmp_path):
    one, two = (DirectoryStore(tmp_path, "7", "e") for _ in range(2))
    with one.locked(), pytest.raises(StoreError, match=f"{tmp_path}/7 is in use by process"), two.locked():
        pass
    with two.locked():
        pass


def test_where_a_file_system_has_no_locks_that_is_told_and_work_goes_on(tmp_path, monkeypatch, caplog):
    def none(descriptor, what):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", none)
    with DirectoryStore(tmp_path, "7", "e").locked():
        pass
    assert "7 cannot be locked (No locks available): let only one run at a time use it" in caplog.text
