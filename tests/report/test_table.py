"""The table on the screen shows the numbers of the summary, and names from data as they are."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_run import write_failed_run, write_run

from fedsa_lora.report.table import print_summary
from fedsa_lora.report.wording import NOT_MEASURED, amount, duration, listed, moment, number, percent, points


def screen(run_dir: Path, width: int = 100) -> str:
    file = io.StringIO()
    print_summary(run_dir, Console(file=file, width=width))
    return file.getvalue()


def test_accuracies_bytes_seconds_and_the_report_are_shown(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "report.html").touch()
    summary = json.loads((tmp_path / "summary.json").read_text())
    text = screen(tmp_path)
    for model in ("personalised", "local_only", "majority"):
        figures = summary[model]
        worst = f"{figures['worst']:.1%} (client {figures['worst_client']})"
        for shown in (f"{figures['mean']:.1%}", f"{figures['weighted']:.1%}", worst):
            assert shown in text
    assert f"{summary['before_aggregation']['mean']:.1%}" in text
    assert "17.7 MB up, 35.5 MB down" in text
    assert "2 min 14 s" in text
    assert f"report: {tmp_path / 'report.html'}\n" in text


def test_skipped_rounds_and_failed_answers_are_told_with_their_cause(tmp_path: Path) -> None:
    write_run(tmp_path / "sound", rounds=3)
    assert "answers failed" not in screen(tmp_path / "sound")
    write_run(tmp_path / "run", rounds=3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    gone = [{"client": c, "kind": "error", "reason": "TrainingError: not [finite]"} for c in "012"]
    clipped = {"client": "5", "kind": "clipped", "reason": "too long"}
    rows[-1] |= {"skipped": True, "remarks": [*gone, clipped]}
    (tmp_path / "run" / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    path = tmp_path / "run" / "summary.json"
    path.write_text(json.dumps(summary | {"failures": 3, "skipped_rounds": 1}))
    expected = (
        "1 round skipped and 3 answers failed, of 3 rounds: "
        "client 0: TrainingError: not [finite] (and 2 more: 1, 2)\n"
    )
    assert expected in screen(tmp_path / "run")


def test_a_run_that_ended_while_flower_started_tells_why(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "stopped", "reason": "stopped before"}))
    assert screen(tmp_path) == "stopped before\n"


def test_a_failed_run_tells_its_reason_as_it_is(tmp_path: Path) -> None:
    text = screen(write_failed_run(tmp_path, "DataError: no column [bold]label[/] in mine.csv"))
    assert "run failed: DataError: no column [bold]label[/] in mine.csv" in text


def test_a_reason_cannot_steer_the_terminal(tmp_path: Path) -> None:
    text = screen(write_failed_run(tmp_path, "RunError: no client\nnode 1: \x1b[2J\x1b]0;x\x07\r\u202e gone"))
    assert "no client\nnode 1:" in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_path_is_never_broken_into_lines(tmp_path: Path) -> None:
    assert str(write_failed_run(tmp_path)) in screen(tmp_path, width=20)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.6132), "61.3%"),
        (percent(None), NOT_MEASURED),
        (percent(float("nan")), NOT_MEASURED),
        (number(1.23456), "1.235"),
        (number(-1e150), "-1e+150"),
        (number(float("inf")), NOT_MEASURED),
        (points(0.0712), "+7.1 points"),
        (points(-0.0712), "\N{MINUS SIGN}7.1 points"),
        (points(-0.0001), "0.0 points"),
        (amount(0), "0 B"),
        (amount(999), "999 B"),
        (amount(147_900), "148 kB"),
        (amount(4_423_680), "4.42 MB"),
        (amount(2.5e9), "2.5 GB"),
        (amount(4e12), "4,000 GB"),
        (duration(8.14), "8.1 s"),
        (duration(134.2), "2 min 14 s"),
        (duration(7384), "2 h 3 min"),
        (moment("2026-03-01T10:00:05+00:00"), "2026-03-01 10:00 UTC"),
        (moment("yesterday"), "yesterday"),
        (listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_in_words(shown: str, expected: str) -> None:
    assert shown == expected
