"""A half-written last line is what a stopped process leaves; all else that is broken is named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import write_run

from fedsa_lora.errors import RunError
from fedsa_lora.files import write_atomically
from fedsa_lora.runs.outcomes import Remark, client_outcomes, in_order, remarks
from fedsa_lora.runs.reading import holds_run, read_json, read_jsonl, read_run


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return tmp_path / "rounds.jsonl"


@pytest.mark.parametrize("cut", range(1, 21))
def test_a_last_line_cut_anywhere_is_dropped(lines: Path, cut: int) -> None:
    whole = '{"round": 2, "n": "é"}'.encode()
    lines.write_bytes(b'{"round": 1}\n' + whole[:cut])
    assert read_jsonl(lines) == [{"round": 1}]


def test_a_last_line_without_its_line_break_is_kept_when_it_is_whole(lines: Path) -> None:
    lines.write_text('{"round": 1}\n{"round": 2}')
    assert read_jsonl(lines, ["round"]) == [{"round": 1}, {"round": 2}]


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [('{"round":', "not valid JSON"), ("[2]", "expected a JSON object, found list"), ("{}", "missing round")],
)
def test_a_bad_line_is_named_by_file_and_number(lines: Path, bad: str, complaint: str) -> None:
    lines.write_text(f'{{"round": 1}}\n{bad}\n{{"round": 3}}\n')
    with pytest.raises(RunError, match=rf"rounds\.jsonl, line 2: {complaint}"):
        read_jsonl(lines, ["round"])


def test_an_empty_file_has_no_rows(lines: Path) -> None:
    lines.touch()
    assert read_jsonl(lines) == []


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"status\.json is missing"):
        read_json(tmp_path / "status.json")
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(RunError, match=r"status\.json: not valid JSON"):
        read_json(tmp_path / "status.json")
    with pytest.raises(RunError, match="not a directory"):
        read_run(tmp_path / "nowhere")


def test_outcomes_are_the_last_measured_values_of_each_client(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path, clients=11, rounds=3))
    outcomes = client_outcomes(record)
    assert [outcome.client for outcome in outcomes] == [str(k) for k in range(11)]
    last = {row["client"]: row for row in record.clients if row["phase"] == "evaluate" and row["round"] == 3}
    for outcome in outcomes:
        row = last[outcome.client]
        assert outcome.personalised == row["accuracy"]
        assert outcome.gain == row["accuracy"] - row["local_only"]
        assert outcome.harmed == (row["accuracy"] < row["local_only"])
        assert outcome.bytes_up == 2 * 3 * 147_900
    assert sum(outcome.harmed for outcome in outcomes) == record.summary["clients_harmed"]


def test_ids_are_ordered_by_value_and_words_come_last() -> None:
    assert in_order(["b", "10", "2", "a"]) == ["2", "10", "a", "b"]
    assert in_order(["1" * 5001, "9" * 5000, "010", "10", "9", "٣"]) == [
        "9", "010", "10", "9" * 5000, "1" * 5001, "٣",
    ]  # fmt: skip


def test_half_a_pair_of_surrogates_is_read_as_what_can_be_written_again(tmp_path: Path) -> None:
    """A row of an older version that holds it made every report of the run fail."""
    rows = [{"a": "x\ud800", "\udfff": ["\ud83d", {"b": "\U0001f4a9"}]}, {"a": "\\ud800"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_jsonl(path) == [{"a": "x?", "?": ["?", {"b": "\U0001f4a9"}]}, {"a": "\\ud800"}]


def test_failures_that_repeat_are_told_once(tmp_path: Path) -> None:
    told, lost = ("1", "error", "no data"), (None, "lost", "a node failed: gone")
    keys = ("client", "kind", "reason")
    rounds = [
        {"round": n, "remarks": [dict(zip(keys, remark, strict=True)) for remark in found]}
        for n, found in enumerate([[told], [lost], [lost, told]], 1)
    ]
    record = replace(read_run(write_run(tmp_path, rounds=1)), rounds=rounds)
    assert remarks(record) == [Remark(*told, (1, 3)), Remark(*lost, (2, 3))]


def test_a_run_directory_that_another_run_takes_is_noticed(tmp_path: Path) -> None:
    """Its environment is read once while it is the same file, and again when it is another."""
    assert not holds_run(tmp_path, "a")
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert holds_run(tmp_path)
    for run in ("a", "b", "c"):
        assert not holds_run(tmp_path, run)
        write_atomically(tmp_path / "environment.json", json.dumps({"run": run}).encode())
        assert holds_run(tmp_path, run)
    (tmp_path / "environment.json").unlink()
    assert not holds_run(tmp_path, "c")
