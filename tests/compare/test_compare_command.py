"""`fedsa-lora compare` with real runs of a tiny model, from the command line to the tables."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from fedsa_lora.cli import EXIT_FAILED, main
from fedsa_lora.compare.grid import read_grid
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
GRID = """
title: Tiny
seeds: [0, 1]
rates: [0.01]
every: 1
reference: alone
regimes: {brief: experiment=smoke federation.rounds=2 federation.clients=3}
methods:
  %s
"""
ALONE, SHARE_A = "alone: split=local_only", "share A: split=share_a"


def grid(folder: Path, *methods: str, **changes: str) -> str:
    path = folder / "tiny.yaml"
    text = GRID % "\n  ".join(methods)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return str(path)


def results(folder: Path) -> dict:
    """By words, rate and seed, all but the times."""
    rows = read_jsonl(folder / "runs.jsonl")
    return {(tuple(row["words"]), row["lr"], row["seed"]): {**row["result"], "seconds": 0} for row in rows}


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    """Alone and share A, each on two seeds, one run after the other."""
    folder = tmp_path_factory.mktemp("compare")
    assert main(["compare", grid(folder, ALONE, SHARE_A), "--processes", "1", "--to", f"{folder}/to"]) == 0
    return folder / "to"


def test_a_comparison_leaves_runs_tables_and_a_figure(compared):
    names = sorted(path.name for path in compared.iterdir())
    assert names == ["brief.png", "runs.jsonl", "table.csv", "table.md"]
    assert len(results(compared)) == 4
    page = (compared / "table.md").read_text()
    assert "## brief" in page
    assert "Not complete" not in page


def test_a_comparison_answers_a_program_with_the_rows_of_its_table(compared, tmp_path, capfd):
    command = ["compare", grid(tmp_path, ALONE, SHARE_A), "--to", str(compared), "--recorded", "--json"]
    assert main(command) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["complete"], found["missing"], found["failures"]) == (True, 0, [])
    assert {row["method"] for row in found["rows"]} == {"alone", "share A"}
    table = (compared / "table.csv").read_text().splitlines()
    assert table[0].split(",") == list(found["rows"][0])
    assert len(table) == 1 + len(found["rows"])


def test_a_run_of_a_comparison_is_the_run_of_its_words(compared, tmp_path):
    [row] = [
        r for r in read_jsonl(compared / "runs.jsonl") if "split=share_a" in r["words"] and r["seed"] == 1
    ]
    words = [*row["words"], "train.lr=0.01", "seed=1", "run.report=false", f"run.dir={tmp_path}/run"]
    rows = read_jsonl(run_in_process(words) / "clients.jsonl")
    last = {r["client"]: r["accuracy"] for r in rows if r["phase"] == "evaluate" and r["round"] == 2}
    assert row["result"]["accuracy"] == last
    assert [point["round"] for point in row["result"]["curve"]] == [1, 2]
    sent = sum(r["bytes_down"] for r in rows if r["phase"] == "fit")
    assert row["result"]["bytes_down"] * 6 == pytest.approx(sent, rel=0.01)  # headers have digits of seconds


@pytest.mark.slow
def test_other_processes_and_another_order_of_methods_give_the_same(compared, tmp_path):
    command = ["compare", grid(tmp_path, SHARE_A, ALONE), "--processes", "2", "--to", f"{tmp_path}/to"]
    assert main(command) == 0
    expected, found = results(compared), results(tmp_path / "to")
    assert found.keys() == expected.keys()
    for key, result in expected.items():
        for what in ("accuracy", "validation", "aggregation_error"):
            assert found[key][what] == result[what]


def test_a_cut_off_comparison_goes_on_where_it_was(compared, tmp_path, capsys):
    to, path = tmp_path / "to", compared / "runs.jsonl"
    to.mkdir()
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    (to / "runs.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
    command = ["compare", grid(tmp_path, ALONE, SHARE_A), "--processes", "1", "--to", str(to)]
    assert main(command) == EXIT_FAILED
    assert "holds 3 runs: --resume continues" in capsys.readouterr().err
    assert main([*command, "--recorded"]) == EXIT_FAILED, "not complete"
    assert (to / "runs.jsonl").read_text() != whole
    assert main([*command, "--resume"]) == 0
    made = [line for line in capsys.readouterr().out.splitlines() if line.startswith("brief, ")]
    assert [line.split(":")[0] for line in made] == ["brief, share A, lr 0.01, seed 1"], "as a log has it"
    assert results(to).keys() == results(compared).keys()
    assert (to / "runs.jsonl").read_text().splitlines()[:3] == whole.splitlines()[:3]
    assert main([*command, "--recorded"]) == 0
    before = (to / "runs.jsonl").read_bytes()
    assert main([*command, "--resume"]) == 0
    assert (to / "runs.jsonl").read_bytes() == before, "nothing was left to do"


def test_runs_on_other_data_are_not_compared_with_those_that_are_recorded(tmp_path, capsys):
    data, rows = tmp_path / "data.csv", [f"look at number {n},{'ab'[n % 2]}\n" for n in range(30)]
    data.write_text("text,label\n" + "".join(rows))
    words = f"federation.clients=3 task=text task.dataset={data}"
    text = grid(tmp_path, ALONE, **{"federation.clients=3": words, "seeds: [0, 1]": "seeds: [0]"})
    command = ["compare", text, "--processes", "1", "--to", f"{tmp_path}/to"]
    assert main(command) == 0
    assert main([*command, "--resume"]) == 0
    data.write_text("text,label\n" + "".join(rows[1:]))
    before = (tmp_path / "to" / "runs.jsonl").read_bytes()
    assert main([*command, "--resume"]) == EXIT_FAILED
    assert f"regime brief: {data} differs from the data of its runs in" in capsys.readouterr().err
    assert (tmp_path / "to" / "runs.jsonl").read_bytes() == before
    assert main([*command, "--restart"]) == 0


def test_a_run_that_fails_is_told_and_the_others_are_made(tmp_path, capsys):
    lost = "lost: split=share_a lora.target_modules=[nosuch]"  # which no config tells of the model
    text = grid(tmp_path, ALONE, lost, **{"seeds: [0, 1]": "seeds: [0]"})
    assert main(["compare", text, "--processes", "1", "--to", f"{tmp_path}/to"]) == EXIT_FAILED
    assert "brief, lost, lr 0.01, seed 0: " in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "to" / "runs.jsonl").read_text().splitlines()]
    assert ["result" in row for row in rows] == [True, False]
    page = (tmp_path / "to" / "table.md").read_text()
    assert "**Runs that failed:**\n- brief, lost, lr 0.01, seed 0: " in page
    assert "| **alone** |" in page
    again = ["compare", text, "--processes", "1", "--to", f"{tmp_path}/to", "--restart"]
    assert main(again) == EXIT_FAILED
    assert len((tmp_path / "to" / "runs.jsonl").read_text().splitlines()) == 2, "the first were thrown away"


def test_a_clash_is_told_before_anything_is_written(tmp_path, capsys):
    clash = "FedEx: split=share_a strategy=fedex"
    assert main(["compare", grid(tmp_path, ALONE, clash), "--to", f"{tmp_path}/to"]) == EXIT_FAILED
    assert "grid tiny, method FedEx: " in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_lines_of_the_methods_table_that_were_written_elsewhere_count_as_done(tmp_path, capsys):
    named = ("dirichlet_01-snips", "FedSA, int8")
    (words,) = (e.words for e in read_grid("methods").entries() if (e.regime, e.method) == named)
    result = {
        "accuracy": {"0": 0.25, "1": 0.75}, "validation": {"0": 0.5, "1": 0.5}, "bytes_up": 694.2,
        "bytes_down": 425.25, "aggregation_error": None, "seconds": 51.2,
        "curve": [{"round": 12, "accuracy": 0.5, "bytes": 134336}],
    }  # fmt: skip
    head = {"cell": named[0], "method": named[1], "words": words, "result": result}
    runs = [(0.0015, 0), (0.004, 0), (0.01, 0), (0.0015, 1)]
    rows = [json.dumps({**head, "lr": lr, "seed": seed}) for lr, seed in runs]
    (tmp_path / "runs.jsonl").write_text("\n".join(rows) + "\n")
    command = ["compare", "methods", "--recorded", "--to", str(tmp_path)]
    assert main(command) == EXIT_FAILED, "all else is missing"
    assert "dirichlet_01-snips: FedSA, int8 0.500" in capsys.readouterr().out
    assert "| **FedSA, int8** | 0.0015 | 0.500 ± 0.000 |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_number_of_processes_that_is_none_is_refused(number, capsys):
    with pytest.raises(SystemExit):
        main(["compare", "methods", "--processes", number])
    assert "--processes" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stopped_comparison_leaves_no_worker_and_no_folder_and_says_how_to_go_on(tmp_path, number, code):
    text = grid(tmp_path, ALONE, SHARE_A, **{"federation.rounds=2": "federation.rounds=999"})
    scratch = Path(tempfile.mkdtemp(prefix="fedsa-"))  # short: worker processes meet at a socket in it
    command = [sys.executable, "-m", "fedsa_lora.cli", "compare", text, "--processes", "2"]
    with subprocess.Popen(
        [*command, "--to", f"{tmp_path}/to"],
        env=os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not list(scratch.glob("fedsa-compare-*/*/run/rounds.jsonl")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        assert process.wait() == code
        said = process.stderr.read() if number != signal.SIGKILL else ""
    assert not psutil.wait_procs(started, timeout=600)[1], "nothing that it started goes on"
    deadline = time.monotonic() + 60
    while list(scratch.glob("fedsa-compare-*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if number != signal.SIGKILL:
        told = (
            f"stopped; 0 of 4 runs are recorded in {tmp_path}/to/runs.jsonl: continue with the same command"
        )
        assert said.strip().splitlines()[-1].startswith(told), said
        assert "Traceback" not in said
