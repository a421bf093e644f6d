"""The log: each line is whole JSON with who, when and in which phase, and each side has its own file."""

import io
import json
import logging
import threading
from datetime import datetime

import pytest

from fedsa_lora.errors import RunError
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.telemetry import journal as journal_module
from fedsa_lora.telemetry.journal import (
    CLIENT_LOG,
    FIELDS,
    SERVER_LOG,
    about,
    journal,
    record,
    record_error,
)

FLOWER = logging.getLogger("flwr")


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_event_is_one_line_with_every_field_whatever_it_says(tmp_path):
    said = 'two\nlines, a "quote", \u2028 and \x1b[31m'
    with journal(tmp_path / "log", "server"), about(round=3, phase="fit"):
        record("answer", said, client="7", bytes=12, seconds=0.5)
    (row,) = rows(tmp_path / "log")
    assert list(row) == ["time", "level", *FIELDS, "message"]
    assert datetime.fromisoformat(row["time"]).tzinfo is not None
    told = {"side": "server", "client": "7", "round": 3, "phase": "fit", "event": "answer"}
    assert row.items() >= (told | {"seconds": 0.5, "bytes": 12, "message": said, "level": "INFO"}).items()


def test_no_message_is_so_long_that_it_pushes_the_others_out(tmp_path):
    with journal(tmp_path / "log", "server"):
        FLOWER.warning("kept")
        FLOWER.warning("%s", "é" * 10**7)
    kept, cut = rows(tmp_path / "log")
    assert kept["message"] == "kept"
    assert len(cut["message"]) == journal_module.MAX_MESSAGE


def test_an_exception_is_one_line_with_its_traceback(tmp_path):
    with journal(tmp_path / "log", "server"):
        try:
            raise RunError("no space")
        except RunError as error:
            record_error("failed", str(error))
    (row,) = rows(tmp_path / "log")
    assert (row["level"], row["event"], row["message"]) == ("ERROR", "failed", "no space")
    assert row["traceback"].startswith("Traceback (most recent call last)")
    assert row["traceback"].endswith("RunError: no space")


@pytest.mark.case(37)
def test_what_the_app_and_flower_log_of_others_cannot_command_a_terminal():
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    FLOWER.addHandler(handler)
    try:
        raise ValueError("\x1b[2Jof others")
    except ValueError as error:
        FLOWER.error("it failed: %s\n\tan indented line", error, exc_info=True)
    finally:
        FLOWER.removeHandler(handler)
    assert "it failed:  [2Jof others\n\tan indented line\nTraceback" in shown.getvalue()
    assert "ValueError:  [2Jof others" in shown.getvalue()
    assert "\x1b" not in shown.getvalue()


def test_what_flower_logs_is_in_the_file_but_for_its_empty_lines(tmp_path):
    with journal(tmp_path / "log", "server"), about(round=2):
        FLOWER.warning("")
        FLOWER.warning("client %s: lost", "a-1", extra={"client": "a-1"})
    (row,) = rows(tmp_path / "log")
    assert (row["round"], row["level"], row["message"], row["client"]) == (
        2,
        "WARNING",
        "client a-1: lost",
        "a-1",
    )


def test_each_side_and_each_client_has_its_own_records_in_one_process(tmp_path):
    def serve(client):
        with journal(tmp_path / client, "client", client), about(phase="fit"):
            FLOWER.warning("of %s", client)

    with journal(tmp_path / "server", "server"):
        record("of the server")
        clients = [threading.Thread(target=serve, args=(name,)) for name in "ab"]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
    assert [row["event"] for row in rows(tmp_path / "server")] == ["of the server"]
    for name in "ab":
        (row,) = rows(tmp_path / name)
        assert (row["message"], row["side"], row["client"], row["phase"]) == (
            f"of {name}",
            "client",
            name,
            "fit",
        )


def test_after_its_end_a_journal_takes_nothing_and_leaves_no_handler(tmp_path):
    before = list(FLOWER.handlers)
    with journal(tmp_path / "log", "server"):
        record("inside")
    record("outside")
    assert FLOWER.handlers == before
    assert [row["event"] for row in rows(tmp_path / "log")] == ["inside"]


def test_a_log_is_bounded_and_the_newest_lines_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "MAX_BYTES", 2_000)
    with journal(tmp_path / "log", "server"):
        for number in range(200):
            record("tick", bytes=number)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["log", "log.1", "log.2", "log.3"]
    assert all(path.stat().st_size <= 2_000 for path in files)
    assert rows(tmp_path / "log")[-1]["bytes"] == 199


def test_a_log_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path, capsys):
    (tmp_path / "file").touch()
    with journal(tmp_path / "file" / "log", "server"):
        record("one")
        record("two")
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_a_run_logs_rounds_and_answers_on_the_server_and_each_client_its_own(smoke_run):
    server = rows(smoke_run / SERVER_LOG)
    assert [row["event"] for row in server if row["event"] in ("started", "completed")] == [
        "started",
        "completed",
    ]
    assert [row["round"] for row in server if row["event"] == "round"] == [1, 2, 3]
    assert {row["side"] for row in server} == {"server"}
    told = {name: [r for r in server if r["event"] == "answer" and r["client"] == name] for name in "0123"}
    for client, answers in told.items():
        phases = [(row["round"], row["phase"]) for row in answers]
        assert phases == [(round_, phase) for round_ in (1, 2, 3) for phase in ("fit", "evaluate")]
        assert all(row["bytes"] > 0 for row in answers)
        own = rows(smoke_run / "clients" / client / CLIENT_LOG)
        assert {(row["side"], row["client"]) for row in own} == {("client", client)}
        served = [row for row in own if row["event"] == "answered" and row["round"]]
        assert [(row["round"], row["phase"]) for row in served] == phases
        assert all(row["seconds"] > 0 and row["bytes"] > 0 for row in served)


def test_a_client_that_fails_logs_why_with_the_traceback_and_the_server_who(tmp_path):
    with pytest.raises(RunError):
        run_in_process(
            ["experiment=smoke", "run.report=false", "train.lr=1e30", f"run.dir={tmp_path / 'run'}"]
        )
    own = rows(tmp_path / "run" / "clients" / "0" / CLIENT_LOG)
    error = next(row for row in own if row["event"] == "error")
    assert (error["round"], error["phase"], error["client"]) == (1, "fit", "0")
    assert "TrainingError" in error["traceback"]
    assert own[-1]["event"] == "refused"
    server = rows(tmp_path / "run" / SERVER_LOG)
    assert {row["client"] for row in server if row["level"] == "WARNING"} >= set("0123")
    failed = server[-1]
    assert (failed["event"], failed["level"]) == ("failed", "ERROR")
    assert "RunError" in failed["traceback"]
