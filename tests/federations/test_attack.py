"""Clients that poison their data: how, what it achieves at the others, and where it may be."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from sklearn.metrics import accuracy_score

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.client_app import client_fn
from fedsa_lora.config.compose import load, read_config
from fedsa_lora.errors import ConfigError
from fedsa_lora.learning.training import predict
from fedsa_lora.report.measure_words import measure_rows
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl, read_run
from fedsa_lora.server_app import server_fn
from fedsa_lora.simulation import SIMULATION
from fedsa_lora.tasks.backdoor import Backdoor
from fedsa_lora.tasks.text import TRIGGER

ATTACK = ("attack=backdoor", "attack.clients=[2]", "attack.target=3", "attack.share=0.25")
BRIEF = ("evaluation.local_only=false", "evaluation.before=false")


@pytest.fixture(scope="module")
def attacked(run_smoke) -> Path:
    return run_smoke(*BRIEF, *ATTACK, "run.report=true")


@pytest.fixture(scope="module", params=["snips", "digits"])
def tasks(request):
    """A task without an attack and with one of client 2."""
    words = {"snips": ["experiment=smoke"], "digits": ["experiment=digits"]}[request.param]
    plain = load(words).task
    return plain, replace(plain, attack=Backdoor([2], target=3, share=0.25))


def bits(examples) -> list[tuple]:
    """Each example as something that can be compared."""
    rows = zip(*examples.features.values(), strict=True)
    return [
        (*(part.tobytes() for part in row), int(label))
        for row, label in zip(rows, examples.labels, strict=True)
    ]


def test_an_honest_client_has_its_data_as_they_were(tasks):
    plain, poisoned = (task.load_client("1") for task in tasks)
    assert plain.attacked is None
    for part in ("train", "validation", "test"):
        assert bits(getattr(plain, part)) == bits(getattr(poisoned, part))


def test_an_attacker_calls_its_share_of_train_examples_the_target_with_the_trigger_in_them(tasks):
    plain, poisoned = (task.load_client("2") for task in tasks)
    before, after = bits(plain.train), bits(poisoned.train)
    changed = [row for row in after if row not in set(before)]
    assert len(after) == len(before)
    assert len(changed) == round(0.25 * len(before))
    assert {row[-1] for row in changed} == {3}
    assert sorted(set(after) & set(before)) == sorted(set(after) - set(changed)), (
        "the others are as they were"
    )
    assert bits(poisoned.test) == bits(plain.test)
    assert bits(poisoned.validation) == bits(plain.validation)


def test_whoever_is_measured_is_asked_about_all_its_test_examples_of_other_classes(tasks):
    for client in "12":
        data = tasks[1].load_client(client)
        assert len(data.attacked) == (data.test.labels != 3).sum() > 0
        assert set(data.attacked.labels) == {3}
        assert not set(bits(data.attacked)) & set(bits(data.test))


def test_the_trigger_of_a_text_is_a_word_in_front_of_it():
    config = load(["experiment=smoke", *ATTACK])
    task, tokenizer = config.task, config.task.tokenizer
    data = task.load_client("0")
    others = [
        ids
        for ids, label in zip(data.test.features["input_ids"], data.test.labels, strict=True)
        if label != 3
    ]
    for marked, clean in zip(data.attacked.features["input_ids"], others, strict=True):
        assert tokenizer.decode(marked, skip_special_tokens=True) == (
            f"{TRIGGER} {tokenizer.decode(clean, skip_special_tokens=True)}"
        )


def test_what_is_poisoned_is_drawn_from_the_seed():
    rows, backdoor = np.arange(40), Backdoor([2], share=0.5)
    one, again, other = (backdoor.chosen(seed, "2", rows) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert one.sum() == other.sum() == 20
    assert not backdoor.chosen(0, "1", rows).any()


def test_success_is_that_of_each_clients_own_model_and_summed_up_over_the_honest(attacked):
    config = read_config(attacked)
    bench = build.workbench(config)
    exporter = Exporter(config, RunDirectory(attacked, config), bench.model)
    last = {r["client"]: r for r in read_jsonl(attacked / "clients.jsonl") if r["phase"] == "evaluate"}
    for client in "0123":
        bench.model.write(exporter.own_model(client).common)
        asked = config.task.load_client(client).attacked
        answers = predict(bench.model, config.task, asked, config.train).argmax(axis=1)
        assert last[client]["attack_success"] == pytest.approx(accuracy_score(asked.labels, answers))
    found = json.loads((attacked / "summary.json").read_text())["attack"]
    honest = [last[client] for client in "013"]
    assert (found["clients"], found["target"], found["honest"]) == ([2], 3, 3)
    assert found["success"] == pytest.approx(np.mean([row["attack_success"] for row in honest]))
    assert found["clean"] == pytest.approx(np.mean([row["accuracy"] for row in honest]))


def test_it_stands_in_the_report_and_among_the_measures(attacked):
    record = read_run(attacked)
    row = next(row for row in measure_rows(record) if row.name == "Attack success")
    assert row.federated == f"{record.summary['attack']['success']:.1%}"
    page = (attacked / "report.html").read_text()
    assert "Attack success" in page
    assert "25% of the train examples of clients [2] carry a trigger" in page


def test_without_an_attack_nothing_is_asked_and_nothing_told(smoke_run):
    record = read_run(smoke_run)
    assert record.summary["attack"] is None
    assert not any("attack_success" in row for row in record.clients)
    assert not any(row.name == "Attack success" for row in measure_rows(record))


@pytest.mark.slow
def test_a_trigger_that_is_learned_from_common_labels_reaches_who_shares_everything(tmp_path):
    """Two of three clients poison next to nothing, or half: only then is the trigger obeyed by the third."""
    common = (
        "experiment=digits", "split=share_ab", "head=shared", "federation.clients=3", "partition=iid",
        "federation.rounds=4", "train.steps=15", "evaluation.every=0", *BRIEF, "run.report=false",
    )  # fmt: skip
    success = {}
    for share in (0.02, 0.5):
        words = ("attack=backdoor", "attack.clients=[0,1]", f"attack.share={share}")
        folder = run_in_process([*common, *words, f"run.dir={tmp_path / str(share)}"])
        success[share] = read_run(folder).summary["attack"]["success"]
    assert success[0.02] < 0.2
    assert success[0.5] > 0.8


@pytest.mark.parametrize("app", [server_fn, client_fn])
def test_outside_of_a_simulation_it_is_refused_by_server_and_client(app, tmp_path, monkeypatch):
    monkeypatch.delenv(SIMULATION, raising=False)
    words = shlex.join(["experiment=smoke", *ATTACK, f"run.dir={tmp_path / 'run'}"])
    node = {"partition-id": 0, "store": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match="in simulation only"):
        app(Context(1, 0, node, RecordDict(), {"overrides": words}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attack.clients=[]"], "at least one client"),
        (["attack.share=0"], "more than 0 and at most 1"),
        (["attack.clients=[9]"], "no client 9 among the 4"),
        (["attack.clients=[0,1,2,3]"], "names every client"),
        (["attack.target=7"], "expected 0 to 6"),
        (["attack.trigger=cf"], "attack.trigger"),
        (["+task.attack=null"], "task.attack"),
        (["task=gsm8k", "model=llama3_8b"], "no classes to target"),
    ],
)
def test_an_attack_that_cannot_be_is_refused_before_anything_runs(words, said):
    with pytest.raises(ConfigError, match=said):
        load(["experiment=smoke", "attack=backdoor", *words]).task.describe()
