"""The live view: what a run wrote so far, whether it is written to, ended or was killed."""

import json
import os
import threading
import time
from io import StringIO

import pytest
from rich.console import Console
from synthetic_run import write_failed_run, write_run

from fedsa_lora import cli
from fedsa_lora.cli import main
from fedsa_lora.errors import RunError
from fedsa_lora.files import write_atomically
from fedsa_lora.report import watch
from fedsa_lora.runs.progress import QUIET_SECONDS, RunProgress
from fedsa_lora.runs.reading import Growing
from fedsa_lora.telemetry.journal import SERVER_LOG


def shown(run_dir, width=160, height=50) -> str:
    console = Console(file=StringIO(), width=width, height=height, color_system=None)
    console.print(watch.view(RunProgress(run_dir), console))
    return console.file.getvalue()


def change(path, **values):
    write_atomically(path, json.dumps(json.loads(path.read_text()) | values).encode())


def running(folder, rounds=3, planned=12):
    """A run that is being written: ``rounds`` of those asked for are done."""
    write_run(folder, clients=4, rounds=rounds)
    change(folder / "status.json", state="running", ended=None, rounds=planned, title="A [red]run[/]")
    (folder / "logs").mkdir()
    return folder


def logged(folder, *rows):
    with open(folder / SERVER_LOG, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def age(folder, seconds):
    """As if nothing had been written for so long."""
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (time.time() - seconds,) * 2)


def test_a_running_run_is_shown_with_its_rounds_clients_and_time_left(tmp_path):
    text = shown(running(tmp_path / "run"))
    progress = RunProgress(tmp_path / "run")
    assert "A [red]run[/]" in text
    assert "running, begun 2026-03-01 10:00 UTC" in text
    assert "round 3 of 12" in text
    assert progress.left == pytest.approx(9 * 8.1, abs=5)
    assert "left 1 min" in text
    last = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[-1])
    assert f"{last['accuracy']:.1%}" in text
    assert progress.metrics.sums["bytes_up"] == 3 * 4 * 147_900
    assert {name: seen.answers for name, seen in progress.clients.items()} == dict.fromkeys("0123", 3)


def test_only_what_is_new_is_read_and_half_a_line_is_left_for_later(tmp_path):
    path = tmp_path / "rows.jsonl"
    growing = Growing(path)
    assert growing.rows() == []
    path.write_text('{"a": 1}\n{"a": ')
    assert growing.rows() == [{"a": 1}]
    assert growing.rows() == []
    with path.open("a") as file:
        file.write('2}\n{"a": 3}\n')
    assert growing.rows() == [{"a": 2}, {"a": 3}]
    assert not growing.replaced()
    path.write_text("")
    assert growing.replaced()


def test_a_run_that_goes_on_and_one_that_is_resumed_are_counted_once(tmp_path):
    folder = running(tmp_path / "run", rounds=5)
    progress = RunProgress(folder)
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(lines[-1].replace('"round": 5', '"round": 6'))
    progress.update()
    assert progress.done == 6
    fresh = folder / "fresh"
    fresh.write_text("".join(lines[:2]))
    os.replace(fresh, folder / "rounds.jsonl")
    progress.update()
    assert (progress.done, len(progress.rounds)) == (2, 2)
    assert progress.metrics.sums["bytes_up"] == 2 * 4 * 147_900


def test_a_killed_run_is_told_with_since_when(tmp_path):
    folder = running(tmp_path / "run")
    assert "without progress" not in shown(folder)
    age(folder, QUIET_SECONDS + 30)
    text = shown(folder)
    assert "running, but without progress since" in text
    assert "(2 min 30 s): perhaps it was killed" in text
    assert "left" not in text
    change(folder / "status.json", state="completed")
    age(folder, QUIET_SECONDS + 30)
    assert "without progress" not in shown(folder)


def test_a_run_with_long_rounds_is_given_more_time(tmp_path):
    folder = running(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(row | {"seconds": 600.0}) + "\n" for row in rows))
    age(folder, 2900)
    assert not RunProgress(folder).quiet
    age(folder, 3100)
    assert RunProgress(folder).quiet


def test_warnings_and_failures_are_shown_and_cannot_steer_the_terminal(tmp_path):
    folder = running(tmp_path / "run")
    row = json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])
    failures = [
        {"client": "2", "kind": "error", "reason": "TrainingError: not finite"},
        {"client": None, "kind": "lost", "reason": "a node failed: gone"},
    ]
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(row | {"round": 4, "remarks": failures, "skipped": True}) + "\n")
    at = "2026-03-01T10:01:00.000+00:00"
    logged(
        folder,
        {"time": at, "level": "INFO", "event": "answer", "client": "1", "round": 3, "phase": "fit"},
        {"time": at, "level": "WARNING", "round": 4, "phase": "fit", "message": "client 2: \x1b[2J[bold]bad"},
    )
    text = shown(folder)
    assert "failures: 1 error, 1 lost" in text
    assert RunProgress(folder).clients["2"].failures == 1
    assert RunProgress(folder).clients["1"].time == at
    assert "round 4, fit: client 2:  [2J[bold]bad" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("name", ["[bold red]x[/nope]", "[/]", "\x1b[2J", "\u202ex", "\ud800", "9" * 5000])
def test_whatever_a_client_is_called_the_view_shows_it_as_text(tmp_path, name):
    """In the directory of a run of an older version, which took every name."""
    folder = running(tmp_path / "run")
    row = json.loads((folder / "clients.jsonl").read_text().splitlines()[-1]) | {"client": name}
    failed = {"round": 4, "remarks": [{"client": name, "kind": "error", "reason": name}]}
    for file, line in (("clients.jsonl", row), ("rounds.jsonl", failed)):
        with (folder / file).open("a") as opened:
            opened.write(json.dumps(line) + "\n")
    logged(folder, {"level": "WARNING", "round": 4, "phase": "fit", "message": f"client {name}: {name}"})
    text = shown(folder)
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.encode()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 24), (80, 10)])
def test_the_lowest_clients_are_shown_where_not_all_have_room(tmp_path, width, height):
    write_run(tmp_path / "run", clients=60, rounds=30)
    text = shown(tmp_path / "run", width, height)
    assert len(text.splitlines()) <= max(height, 20)
    assert all(len(line) <= width for line in text.splitlines())
    progress = RunProgress(tmp_path / "run")
    lowest = min(progress.clients, key=lambda name: progress.clients[name].value)
    below = text.partition("last answer")[2].splitlines()
    assert f" {lowest} " in f" {below[2].replace('│', ' ')} "
    assert "of 60" in text


def test_before_a_run_has_begun_it_is_starting(tmp_path):
    (tmp_path / "logs").mkdir()
    assert "starting Flower and Ray" in shown(tmp_path)
    with pytest.raises(RunError, match="is not a run directory"):
        RunProgress(tmp_path / "logs")


@pytest.mark.parametrize(
    ("state", "code"), [("running", 0), ("completed", 0), ("failed", 1), ("stopped", 143)]
)
def test_once_prints_and_says_by_its_exit_code_whether_it_failed(tmp_path, capsys, state, code):
    folder = running(tmp_path / "run")
    change(folder / "status.json", state=state, reason="RunError: too few" if state == "failed" else None)
    assert main(["watch", str(folder), "--once"]) == code
    said = capsys.readouterr().out
    assert f"{state}, begun" in said
    assert ("the run failed: too few" in said) == (state == "failed")


@pytest.mark.parametrize(("state", "code"), [("completed", 0), ("failed", 1), ("stopped", 143)])
def test_a_run_is_followed_until_it_ends(tmp_path, capsys, monkeypatch, state, code):
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.01)
    folder = running(tmp_path / "run")
    end = threading.Timer(0.2, lambda: change(folder / "status.json", state=state, reason="R: said"))
    end.start()
    assert main(["watch", str(folder)]) == code
    end.join()
    assert f"{state}, begun" in capsys.readouterr().out


def test_a_failed_run_without_rounds_is_shown(tmp_path, capsys):
    assert main(["watch", str(write_failed_run(tmp_path / "run"))]) == cli.EXIT_FAILED
    assert "DataError: no data" in capsys.readouterr().out


def test_ending_the_view_leaves_the_run_alone(tmp_path, capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupt)
    folder = running(tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    assert main(["watch", str(folder)]) == cli.INTERRUPTED == 130
    assert "the run continues" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*.json*")} == before


def test_a_real_run_is_shown_as_its_rows_have_it(smoke_run):
    progress = RunProgress(smoke_run)
    assert (progress.state, progress.done, progress.metrics.planned) == ("completed", 3, 3)
    told = {name: (seen.answers, seen.round) for name, seen in progress.clients.items()}
    assert told == dict.fromkeys("0123", (3, 3))
    assert all(seen.time for seen in progress.clients.values())
    assert not progress.warnings
