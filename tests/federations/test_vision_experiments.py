"""The experiments on images: their settings, what they send, and that they run."""

import json
from pathlib import Path

import pytest

from fedsa_lora.config.compose import CONF, load
from fedsa_lora.launch.plan import payload_bytes
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.server.build import skeleton

NAMES = ("fedavg", "fedlora", "fedsa")
DIGITS = ("task=digits", "task.size=32")  # they come with a library; in grey, which becomes three channels
CIFAR = CONF.parent.parent / "shared" / "data" / "cifar10"
HEAD = 128 * 10 + 10


def test_these_are_all_there_are_and_each_says_how_it_is_run():
    folder = CONF / "experiment" / "vision"
    names = [*NAMES, "quick"]
    assert sorted(path.stem for path in folder.glob("*.yaml")) == names
    for name in names:
        first, second = (folder / f"{name}.yaml").read_text().splitlines()[:2]
        assert first == "# @package _global_"
        assert second == f"# fedsa-lora run experiment=vision/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_are_those_of_the_document(name):
    config = load([f"experiment=vision/{name}"])
    assert config.task.dataset == "uoft-cs/cifar10"
    assert (config.train.optimizer, config.train.lr, config.train.head_lr) == ("sgd", 0.01, None)
    assert (config.train.epochs, config.train.steps, config.train.batch_size) == (10, None, 10)
    assert (config.federation.rounds, config.federation.clients) == (50, 10)
    assert config.federation.partitioner["alpha"] == 0.5
    assert config.federation.partitioner["_target_"].endswith("DirichletPartitioner")
    assert "CIFAR" not in config.title, "task=mnist runs under the same title"
    if name == "fedavg":
        assert config.lora is None
    else:
        lora = config.lora
        assert (lora.r, lora.alpha, lora.dropout, lora.target_modules) == (8, 16, 0, ["o_proj", "fc2"])


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["experiment=vision/fedlora"], 30_720 + HEAD),
        (["experiment=vision/fedlora", "head=local"], 30_720),
        (["experiment=vision/fedlora", "split=share_a"], 18_432 + HEAD),
        (["experiment=vision/fedsa"], 18_432),
        (["experiment=vision/fedsa", "lora=vit_ranks"], 21_504),
    ],
)
def test_a_client_sends_what_the_experiment_says(words, values):
    config = load([*words, *DIGITS])
    assert payload_bytes(config, skeleton(config)) == 4 * values


def test_all_weights_are_3244584_bytes():
    config = load(["experiment=vision/fedavg", *DIGITS])
    full = payload_bytes(config, skeleton(config))
    assert full == 3_244_584
    assert [f"{1 - 4 * values / full:.1%}" for values in (18_432, 30_720)] == ["97.7%", "96.2%"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES[::-1])
def test_each_runs(tmp_path, name):
    assert_runs(tmp_path, name, *DIGITS)


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"no local copy of CIFAR-10 at {CIFAR}")
@pytest.mark.parametrize("name", NAMES)
def test_each_runs_on_a_local_copy(tmp_path, name):
    assert_runs(tmp_path, name, f"task.dataset={CIFAR}", "task.image=image")


def assert_runs(folder: Path, name: str, *words: str) -> None:
    small = (
        "federation.clients=2", "federation.rounds=1", "train.epochs=null", "train.steps=2",
        "federation.train_examples=[20,20]", "federation.test_examples=10", "run.report=false",
    )  # fmt: skip
    run = run_in_process([f"experiment=vision/{name}", *words, *small, f"run.dir={folder / 'run'}"])
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["rounds"], summary["clients"], summary["failures"]) == (1, 2, 0)
    last = json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])
    assert (last["global_accuracy"] is None) == (name == "fedsa")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_quick_one_shows_that_federation_is_worth_it(tmp_path, seed):
    words = ("experiment=vision/quick", f"seed={seed}", "evaluation.every=8", "run.report=false")
    run = run_in_process([*words, f"run.dir={tmp_path / 'run'}"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["gain_over_local"] > 0.02
    assert summary["gain_interval"][0] > 0
    assert summary["local_only"]["mean"] <= 0.9
