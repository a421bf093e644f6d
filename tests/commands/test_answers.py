"""The answer of a command to a program: one JSON object on stdout, and the exit code that it has without."""

import json
import math
import os

import numpy as np
import pytest

from fedsa_lora.cli import main
from fedsa_lora.commands.screen import EXIT_FAILED, Answer, all_on_stderr
from fedsa_lora.config.compose import load, read_config, to_yaml
from fedsa_lora.doctor import machine as doctor
from fedsa_lora.runs.inprocess import run_in_process

BRIEF = ["federation.clients=2", "federation.rounds=2", "evaluation.local_only=false", "run.report=false"]


def answered(capfd, *arguments: str, code: int = 0) -> tuple[dict, str]:
    """The object on stdout, and what stands on stderr."""
    assert main([*arguments, "--json"]) == code
    captured = capfd.readouterr()
    return json.loads(captured.out), captured.err


def test_a_run_from_a_file_answers_with_its_summary_and_logs_a_line_for_each_round(tmp_path, capfd):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(load(["experiment=smoke", "train.lr=0.02", *BRIEF, f"run.dir={tmp_path}/first"])))
    found, logged = answered(capfd, "run", str(file), "train.steps=1", f"run.dir={tmp_path}/run")
    assert found["run_dir"] == str(tmp_path / "run")
    assert (found["state"], found["report"]) == ("completed", None)
    assert found["summary"] == json.loads((tmp_path / "run" / "summary.json").read_text())
    lines = [line for line in logged.splitlines() if line.startswith("round ")]
    assert [line.split(":")[0] for line in lines] == ["round 1 of 2", "round 2 of 2"]
    assert all(" accuracy " in line and ", sent " in line for line in lines)
    assert "━━━ " not in logged, "no bar that moves"
    train = read_config(tmp_path / "run").train
    assert (train.lr, train.steps) == (0.02, 1)
    command = json.loads((tmp_path / "run" / "environment.json").read_text())["command"]
    assert str(file) not in command
    assert "train.lr=0.02" in command


def test_a_run_that_is_resumed_answers_as_the_run_itself(tmp_path, capfd):
    run = run_in_process(["experiment=smoke", "train.steps=1", *BRIEF, f"run.dir={tmp_path}/run"])
    summary = json.loads((run / "summary.json").read_text())
    found, _ = answered(capfd, "resume", str(run), code=EXIT_FAILED)
    assert "is complete" in found["reason"]
    (run / "summary.json").unlink()
    found, _ = answered(capfd, "resume", str(run))
    assert found == {"run_dir": str(run), "state": "completed", "report": None, "summary": summary}


def test_a_dry_run_answers_with_the_plan_and_the_config(tmp_path, capfd):
    found, logged = answered(capfd, "run", "--dry-run", "experiment=smoke", *BRIEF, f"run.dir={tmp_path}/run")
    assert (found["state"], found["run_dir"]) == ("planned", str(tmp_path / "run"))
    assert found["config"]["federation"]["clients"] == 2
    assert found["parameters"]["A"] == 1024
    assert len(found["train_examples"]) == 2
    assert found["changes"]["federation.rounds"] == "2"
    assert "parameters" in logged


def test_an_error_is_an_answer_with_the_exit_code_of_the_command(capfd):
    found, logged = answered(capfd, "run", "spilt=x", code=EXIT_FAILED)
    assert found["error"] == "ConfigError"
    assert "did you mean 'split'?" in found["reason"]
    assert "did you mean 'split'?" in logged


def test_clients_of_a_run_are_answered_with_what_they_reach_now(smoke_run, capfd):
    found, _ = answered(capfd, "evaluate", str(smoke_run))
    assert (found["run_dir"], found["measure"]) == (str(smoke_run), "accuracy")
    assert [row["client"] for row in found["clients"]] == ["0", "1", "2", "3"]
    assert all(row["value"] == pytest.approx(row["recorded"]) for row in found["clients"])


def test_the_doctor_answers_with_every_check(capfd, monkeypatch):
    checks = [doctor.Check("disk", True, "much"), doctor.Check("GPU", False, "broken", "mend it")]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    found, _ = answered(capfd, "doctor", code=EXIT_FAILED)
    assert not found["ok"]
    assert found["checks"][1] == {
        "name": "GPU",
        "ok": False,
        "found": "broken",
        "remedy": "mend it",
        "status": "FAIL",
    }


def test_what_other_code_writes_on_stdout_is_not_in_the_answer(capfd):
    with all_on_stderr():
        print("printed")
        os.write(1, b"by a child\n")
    print("answer")
    captured = capfd.readouterr()
    assert captured.out == "answer\n"
    assert "printed" in captured.err
    assert "by a child" in captured.err


def test_an_answer_is_json_whatever_numbers_are_in_it(tmp_path):
    found = {"a": math.nan, "b": [np.float32(0.5), np.int64(3)], "c": {1: tmp_path}, "d": True}
    plain = {"a": None, "b": [0.5, 3], "c": {"1": str(tmp_path)}, "d": True}
    assert json.loads(Answer(0, found).as_json()) == plain
