"""A task with a measure of its own goes through everything by that name; one without any is refused."""

import csv
import json
import os
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from language import Surprise, words_of_a_run, write_sums, write_tokenizer

from fedsa_lora.analysis.frames import load_run
from fedsa_lora.cli import main
from fedsa_lora.config.compose import load, read_config
from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.exchange import measure
from fedsa_lora.exchange.measure import CLASSES, Measure
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_json, read_jsonl, read_run
from fedsa_lora.tasks.causal_lm import OF_TOKENS
from fedsa_lora.tasks.task import measured
from fedsa_lora.telemetry.exposition import METRICS

PERPLEXITY = Surprise.measures[0]
VALIDATED = ("federation.validation_examples=2", "federation.train_examples=[10,10]")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """A run of the task, which this machine allows as a plug-in."""
    folder = tmp_path_factory.mktemp("words")
    for name in ("rows", "tokenizer"):
        (folder / name).mkdir()
    given = words_of_a_run(write_sums(folder / "rows"), write_tokenizer(folder / "tokenizer"))
    return [*given, "++task._target_=language.Surprise", "description=Sums."]


@pytest.fixture(scope="module", autouse=True)
def plugged_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSA_LORA_PLUGINS", "language")
        patch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        yield


@pytest.fixture(scope="module")
def run(words, tmp_path_factory) -> Path:
    return run_in_process([*words, f"run.dir={tmp_path_factory.mktemp('surprise') / 'run'}"])


def texts(folder: Path) -> dict[str, str]:
    """Every text that a run wrote, without the pictures in the report."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".jsonl", ".csv", ".html", ".md", ".prom", ".log"):
            text = path.read_text(errors="replace")
            found[str(path.relative_to(folder))] = re.sub(r"base64,[^\"]+", "", text)
    return found


def test_rows_and_summary_have_its_name_and_its_direction(run):
    rounds, clients = read_jsonl(run / "rounds.jsonl"), read_jsonl(run / "clients.jsonl")
    last = {row["client"]: row for row in clients if row["phase"] == "evaluate" and row["round"] == 3}
    values = [row["perplexity"] for row in last.values()]
    assert rounds[-1]["perplexity"] == pytest.approx(sum(values) / 2)
    assert rounds[-1]["perplexity_worst"] == max(values)
    assert {"perplexity_weighted", "perplexity_before"} <= rounds[-1].keys()
    found = read_json(run / "summary.json")
    ours, alone = found["personalised"], found["local_only"]
    assert (ours["worst"], alone["worst"]) == (max(values), max(row["local_only"] for row in last.values()))
    assert last[ours["worst_client"]]["perplexity"] == max(values)
    gained = [row["local_only"] - row["perplexity"] for row in last.values()]
    assert found["gain_over_local"] == pytest.approx(sum(gained) / 2)
    assert found["clients_harmed"] == sum(gain < 0 for gain in gained)
    assert found["best"]["mean"] == min(row["perplexity"] for row in rounds)
    reached = [row["round"] for row in rounds if row["perplexity"] <= alone["mean"]]
    assert found["target"]["rounds"] == (reached[0] if reached else None)
    assert found["target"]["perplexity"] == alone["mean"]
    assert found["majority"] is found["global"] is None


def test_outcomes_frames_and_csv_follow_it(run):
    found = load_run(run)
    assert found.record.primary == PERPLEXITY
    outcomes = found.outcomes
    assert (outcomes["gain"] == outcomes["local_only"] - outcomes["personalised"]).all()
    assert (outcomes["harmed"] == (outcomes["gain"] < 0)).all()
    for name in ("rounds", "clients"):
        (header, *_) = csv.reader((run / f"{name}.csv").read_text().splitlines())
        assert "perplexity" in header


def test_nothing_that_the_run_wrote_knows_accuracy(run):
    found = texts(run)
    assert {"report.html", "metrics.prom", "summary.json", "rounds.csv", "partition.json"} <= found.keys()
    named = [name for name, text in found.items() if "accuracy" in text.lower()]
    assert named == []
    assert (run / "figures" / "perplexity_by_round.png").is_file()
    assert not (run / "figures" / "accuracy_by_round.png").exists()


def test_the_report_shows_plain_numbers_and_says_which_way_is_better(run):
    page, summary = texts(run)["report.html"], read_run(run).summary
    assert "<h2>Perplexity</h2>" in page
    mean = summary["personalised"]["mean"]
    assert f'<dt>Mean perplexity</dt><dd class="value">{mean:.3f}</dd>' in page
    assert "lower is better" in page
    assert f"{mean:.1%}" not in page
    assert f"{100 * mean:.1f} points" not in page
    assert "points" not in page.replace("Endpoints", "")
    assert "Maximum" in page


def test_the_screen_shows_it(run, capsys):
    assert main(["watch", str(run), "--once"]) == 0
    said = capsys.readouterr().out
    last = read_jsonl(run / "rounds.jsonl")[-1]
    assert f"perplexity {last['perplexity']:.3f}" in said
    assert "accuracy" not in said
    assert "%" not in said
    assert main(["evaluate", str(run), "--union", "--newcomer-steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "personalised perplexity" in said
    assert "union: mean perplexity" in said
    assert "accuracy" not in said
    found = read_json(run / "evaluation.json")
    assert sorted(found["union"]["perplexity"]) == sorted(found["newcomer"]["perplexity"]) == ["0", "1"]


def test_the_metrics_have_a_family_of_its_name(run):
    text = (run / METRICS).read_text()
    last = read_jsonl(run / "rounds.jsonl")[-1]
    (line,) = [line for line in text.splitlines() if 'over="worst"' in line]
    assert line.startswith("fedsa_lora_perplexity{")
    assert float(line.split()[-1]) == last["perplexity_worst"]
    assert "Over clients, on own test examples; lower is better." in text


def test_a_client_is_exported(run, tmp_path, capsys):
    assert main(["export", str(run), "--client", "0", "--to", str(tmp_path / "0")]) == 0
    assert (tmp_path / "0" / "adapter_model.safetensors").is_file()


def test_a_run_is_resumed_in_its_measure_and_in_no_other(words, tmp_path):
    whole = run_in_process([*words, f"run.dir={tmp_path / 'run'}", "federation.rounds=2", "run.report=false"])
    rows = read_jsonl(whole / "rounds.jsonl")
    config = load([*words, f"run.dir={whole}", "run.report=false", "run.resume=true"])
    longer = [*words, f"run.dir={whole}", "run.report=false", "run.resume=true"]
    renamed = json.loads((whole / "partition.json").read_text())
    renamed["measures"][0]["name"] = "surprise"
    kept = (whole / "partition.json").read_text()
    (whole / "partition.json").write_text(json.dumps(renamed))
    with pytest.raises(
        RunError, match="was measured by surprise, and its task is now measured by perplexity"
    ):
        RunDirectory.resume(config, "fedsa-lora run")
    (whole / "partition.json").write_text(kept)
    run_in_process(longer)
    resumed = read_jsonl(whole / "rounds.jsonl")
    assert resumed[0] == rows[0]
    assert [row["round"] for row in resumed] == [1, 2, 3]
    assert all("perplexity" in row for row in resumed)


@pytest.mark.slow
def test_a_comparison_prefers_the_lower(words, tmp_path, capsys):
    quoted = " ".join(f"'{word}'" if " " in word else word for word in words)
    (tmp_path / "grid.yaml").write_text(
        "title: Surprise\nseeds: [0]\nrates: [0.001, 0.01]\nevery: 1\nreference: alone\n"
        f"regimes: {{sums: {json.dumps(quoted + ' federation.rounds=2 ' + ' '.join(VALIDATED))}}}\n"
        "methods:\n  alone: split=local_only head=local\n  share A: split=share_a head=local\n"
    )
    folder = tmp_path / "to"
    assert main(["compare", str(tmp_path / "grid.yaml"), "--processes", "1", "--to", str(folder)]) == 0
    results = [row["result"] for row in read_jsonl(folder / "runs.jsonl")]
    assert all(Measure.read(found["measure"]) == PERPLEXITY for found in results)
    validated = {
        (row["method"], row["lr"]): sum(row["result"]["validation"].values())
        for row in read_jsonl(folder / "runs.jsonl")
    }
    means = {
        (row["method"], row["lr"]): sum(row["result"]["perplexity"].values()) / 2
        for row in read_jsonl(folder / "runs.jsonl")
    }
    best = {m: min((0.001, 0.01), key=lambda lr: validated[m, lr]) for m in ("alone", "share A")}
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert {row["method"]: float(row["lr"]) for row in rows} == best
    assert float(rows[0]["mean"]) == min(means[m, lr] for m, lr in best.items())
    table = (folder / "table.md").read_text()
    assert "Perplexity is that of each client's own model" in table
    assert "accuracy" not in table.lower()
    assert "points" not in table


CHANGES = {
    "no measures": ((), "none declared; expected a tuple of Measure"),
    "as ranges": ({"accuracy": (0.0, 1.0)}, "a dict; expected a tuple of Measure"),
    "a list": ([Measure("bleu", (0.0, 1.0))], "a list; expected a tuple of Measure"),
    "a family of metrics": ((Measure("round_loss", (0.0, 1.0)),), "'round_loss' would have two meanings"),
    "a name alone": (("perplexity",), "'perplexity' is not a Measure; expected Measure"),
    "no name": ((Measure("A measure", (0.0, 1.0)),), "'A measure' is not a valid name"),
    "an empty range": (
        (Measure("bleu", (1.0, 1.0)),),
        "the range of 'bleu' is (1.0, 1.0); expected (low, high)",
    ),
    "an endless range": ((Measure("bleu", (0.0, float("inf"))),), "the range of 'bleu' is (0.0, inf)"),
    "an unknown format": ((Measure("bleu", (0.0, 1.0), format="stars"),), "the format of 'bleu' is 'stars'"),
    "twice": (
        (Measure("bleu", (0.0, 1.0)), Measure("bleu", (0.0, 9.0))),
        "'bleu' would have two meanings",
    ),
    "of a row": ((Measure("seconds", (0.0, 1.0)),), "'seconds' would have two meanings in a row"),
    "derived": (
        (Measure("bleu", (0.0, 1.0)), Measure("bleu_before", (0.0, 1.0))),
        "'bleu_before' would have two meanings in a row",
    ),
    "the loss of training": ((Measure("loss", (0.0, 1.0)),), "'loss' would have two meanings in a row"),
}


@pytest.mark.parametrize(("measures", "said"), CHANGES.values(), ids=CHANGES)
def test_what_declares_nothing_of_use_is_refused_before_anything_runs(words, monkeypatch, measures, said):
    monkeypatch.setattr(Surprise, "measures", measures)
    with pytest.raises(ConfigError) as caught:
        load(words)
    assert "task._target_: Surprise.measures: " in str(caught.value)
    assert said in str(caught.value)


class Answers(Surprise):
    """Returns what a test says."""

    numbers: ClassVar[dict[str, object]] = {}

    def evaluate(self, predictions, labels):
        return self.numbers


def test_what_a_task_returns_beside_its_measures_is_left_out_and_what_it_lacks_is_named(monkeypatch):
    task = object.__new__(Answers)
    monkeypatch.setattr(Answers, "numbers", {"accuracy": 0.5, "perplexity": np.float32(2.5)})
    found = measured(task, np.zeros((1, 2), np.float32), np.zeros(1))
    assert (found, type(found["perplexity"])) == ({"perplexity": 2.5}, float)
    monkeypatch.setattr(Answers, "numbers", {"perplexty": 2.5})
    told = "Answers declares the measures perplexity, .* no perplexity, only perplexty"
    with pytest.raises(ConfigError, match=told):
        measured(task, np.zeros((1, 2), np.float32), np.zeros(1))


def test_a_run_of_a_task_that_lacks_its_measure_ends_at_the_first_evaluation(words, tmp_path, monkeypatch):
    monkeypatch.setattr(Surprise, "evaluate", lambda task, predictions, labels: {"perplexty": 2.5})
    settings = ("federation.rounds=3", "evaluation.every=1", f"run.dir={tmp_path / 'run'}")
    with pytest.raises(RunError, match="no client answered the evaluation of round 1\nclient 0: ConfigError"):
        run_in_process([*words, *settings])
    assert read_json(tmp_path / "run" / "status.json")["state"] == "failed"


@pytest.mark.parametrize("measures", [CLASSES, OF_TOKENS, Surprise.measures])
def test_what_our_tasks_declare_is_of_use(measures):
    assert measure.faults(measures) == []


def test_every_other_key_of_a_row_is_reserved(run):
    rows = [*read_jsonl(run / "rounds.jsonl"), *read_jsonl(run / "clients.jsonl")]
    own = {PERPLEXITY.name, PERPLEXITY.before, PERPLEXITY.weighted, PERPLEXITY.worst, PERPLEXITY.of_global}
    assert {key for row in rows for key in row} - own - {"loss"} <= measure.RESERVED


def test_a_run_of_a_version_that_recorded_no_measures_is_read_as_accuracy(run, tmp_path):
    (tmp_path / "old").mkdir()
    for name in ("config.yaml", "status.json"):
        (tmp_path / "old" / name).write_text((run / name).read_text())
    assert read_run(tmp_path / "old").primary == CLASSES[0]
    (tmp_path / "old" / "partition.json").write_text('{"measures": [{"name": "f1"}]}')
    with pytest.raises(RunError, match=r"partition.json: its measures cannot be read"):
        _ = read_run(tmp_path / "old").primary
    assert read_config(run).task.measures == (PERPLEXITY,)
