"""Two runs side by side: client by client on the same data, by what differs, and inert whatever the names."""

import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
from html_page import Page
from synthetic_run import write_failed_run, write_run

from fedsa_lora.cli import main
from fedsa_lora.errors import RunError
from fedsa_lora.report.page import render
from fedsa_lora.report.recorded_config import differences
from fedsa_lora.report.side_by_side import write_side_by_side
from fedsa_lora.runs.measures import interval
from fedsa_lora.runs.reading import read_run

MEASURE = {"name": "accuracy", "range": [0.0, 1.0], "higher_is_better": False, "format": "percent"}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs on the same data, of which the second reached more at clients 0 to 7."""
    one = write_run(tmp_path / "one", clients=8, rounds=2)
    other = tmp_path / "other"
    shutil.copytree(one, other)
    rows = [json.loads(line) for line in (other / "clients.jsonl").read_text().splitlines()]
    for row in rows:
        if row["phase"] == "evaluate":
            row["accuracy"] += 0.01 * (1 + int(row["client"]))
    (other / "clients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return one, other


def page_of(one: Path, other: Path) -> str:
    return Page(write_side_by_side(one, other, one.parent / "page.html").read_text()).text


def test_the_difference_is_that_of_the_clients(runs):
    gained = [0.01 * (1 + n) for n in range(8)]
    low, high = interval(gained)
    text = page_of(*runs)
    assert "other is better" in text
    assert f"+{100 * fmean(gained):.1f} points" in text
    assert f"95% interval +{100 * low:.1f} to +{100 * high:.1f} points" in text
    assert page_of(*reversed(runs)).count("other is better") == 1


def test_where_lower_is_better_the_other_run_wins(runs):
    for folder in runs:
        partition = json.loads((folder / "partition.json").read_text())
        (folder / "partition.json").write_text(json.dumps(partition | {"measures": [MEASURE]}))
    assert "one is better" in page_of(*runs)


@pytest.mark.parametrize("file", ["partition.json", "data.json", "config.yaml"])
def test_clients_with_other_data_are_not_compared_one_by_one(runs, file):
    one, other = runs
    if file == "partition.json":
        (other / file).write_text((other / file).read_text().replace('"test": 70', '"test": 71', 1))
    elif file == "data.json":
        for n, folder in enumerate(runs):
            parts = {"clients": {"count": 8, "digest": f"{n}"}}
            (folder / file).write_text(json.dumps({"source": "snips", "parts": parts}))
    else:
        (other / file).write_text((other / file).read_text().replace("seed: 0", "seed: 1"))
    text = page_of(one, other)
    assert "do not hold the same data" in text
    assert "Each client in both runs" not in text


def test_a_few_clients_that_gain_the_same_decide_nothing(tmp_path):
    one = write_run(tmp_path / "one", clients=1, rounds=1)
    shutil.copytree(one, tmp_path / "other")
    assert "too few clients for an interval" in page_of(one, tmp_path / "other")


def test_a_run_that_recorded_nothing_is_set_beside_one_that_did(runs, tmp_path):
    assert "Not compared" in page_of(runs[0], write_failed_run(tmp_path / "failed"))


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    one, other = (write_run(tmp_path / above / "run", clients=2, rounds=1) for above in "ab")
    text = page_of(one, other)
    assert "a/run" in text
    assert "b/run" in text


def test_runs_that_cannot_be_compared_are_refused(runs):
    one, other = runs
    with pytest.raises(RunError, match="given twice"):
        page_of(one, one)
    partition = json.loads((other / "partition.json").read_text())
    (other / "partition.json").write_text(json.dumps(partition | {"measures": [MEASURE | {"name": "f1"}]}))
    with pytest.raises(RunError, match=r"one is measured by accuracy and .*other by f1"):
        page_of(one, other)
    assert not (one.parent / "page.html").exists()


def test_names_and_settings_are_inert(runs):
    one, other = runs
    evil = other.rename(other.parent / "<img src=x onerror=alert(1)>")
    (evil / "config.yaml").write_text("seed: 0\nnote: '<script>alert(1)</script>'\n")
    page = Page(write_side_by_side(one, evil, one.parent / "page.html").read_text())
    assert not page.all("img")
    assert len(page.scripts) == 1
    assert not page.open


@pytest.mark.usefixtures("undrawn")
def test_a_resumed_run_is_told_apart_from_its_versions(runs):
    environment = json.loads((runs[1] / "environment.json").read_text())
    resumed = [{"after_round": 1, "time": "2026-03-01T10:01:00+00:00"}]
    (runs[1] / "environment.json").write_text(json.dumps(environment | {"resumed": resumed}))
    text = page_of(*runs)
    assert "other was resumed after round 1, 2026-03-01 10:01 UTC." in text
    assert "Version " not in text
    assert "resumed after round 1, 2026-03-01 10:01 UTC" in Page(render(read_run(runs[1]))).text


def test_settings_that_differ_are_listed_without_places_and_titles():
    one = "a: {b: 1, c: [1, 2]}\nname: x\nrun: {dir: y}\nonly: null\n"
    other = "a: {b: 2, c: [1, 2]}\nname: z\nrun: {dir: z}\n"
    assert differences(one, other) == [("a.b", "1", "2"), ("only", "null", "")]
    assert differences(one, "cut: [off") == [
        ("a.b", "1", ""), ("a.c", "[1, 2]", ""), ("only", "null", ""),
    ]  # fmt: skip


def test_the_command_writes_either_page(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "one"]) == 0
    assert (tmp_path / "one" / "report.html").is_file()
    assert main(["report", "one", "other"]) == 0
    assert "one-and-other.html" in capsys.readouterr().out
    page = Page((tmp_path / "one-and-other.html").read_text())
    assert "one/report.html" in {tag["href"] for tag in page.all("a")}
    assert main(["report", "one", "--to", "page.html"]) == 1
    assert "--to is the output file for two runs" in capsys.readouterr().err
