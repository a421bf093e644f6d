"""Decisions by measurement: taken once for a run, and what becomes of the choice of attention."""

import json
from dataclasses import replace

import pytest

from fedsa_lora.client import build
from fedsa_lora.config.compose import load
from fedsa_lora.decision import DECISION, decided, recorded
from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.learning import attention
from fedsa_lora.learning.adapters import AdapterModel, attach
from fedsa_lora.simulation import SIMULATION
from fedsa_lora.tasks.heads import unwrapped

HALF = ("experiment=smoke", "train.precision=bf16")


def in_use(model: AdapterModel) -> str:
    return unwrapped(model.module).config._attn_implementation


def test_what_is_decided_is_measured_once_and_read_by_all_after(tmp_path):
    assert recorded(tmp_path) == {}
    measurements = iter(["eager"])
    for _ in range(3):
        assert decided(tmp_path, "attention", lambda: next(measurements)) == "eager"
    assert decided(tmp_path, "cohort", lambda: "5") == "5"
    assert recorded(tmp_path) == {"attention": "eager", "cohort": "5"}


def test_a_measurement_that_fails_decides_nothing(tmp_path):
    def fails():
        raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        decided(tmp_path, "attention", fails)
    assert recorded(tmp_path) == {}
    assert decided(tmp_path, "attention", lambda: "sdpa") == "sdpa"


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / DECISION).write_text(text)
    for look in (recorded, lambda folder: decided(folder, "attention", str)):
        with pytest.raises(RunError, match=r"decision\.json is corrupted: .* remove it"):
            look(tmp_path)


def test_the_measurement_takes_the_faster_one_and_leaves_the_model_as_it_was(monkeypatch):
    config = load(HALF)
    model = AdapterModel(attach(config.task.build_model(seed=0), config.lora))
    model.hold_frozen(config.train.dtype)
    before = model.read()
    train = config.task.load_client("0").train
    seconds = {"sdpa": 1.0, "eager": 0.5}
    monkeypatch.setattr(attention, "_seconds", lambda step: (step(), seconds[in_use(model)])[1])
    assert attention.measured_attention(model, config.task, train, config.train) == "eager"
    seconds["eager"] = 0.97  # not clearly faster
    assert attention.measured_attention(model, config.task, train, config.train) == "sdpa"
    assert in_use(model) == "sdpa"
    assert all((value == model.read()[name]).all() for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_a_simulation_decides_once_and_its_other_processes_and_a_resumption_follow(tmp_path, monkeypatch):
    monkeypatch.setenv(SIMULATION, "1")
    config = load([*HALF, f"run.dir={tmp_path}"])
    assert in_use(build.workbench(config).model) == "sdpa"
    assert recorded(tmp_path) == {}, "a small model is not worth a measurement"
    monkeypatch.setattr(attention, "SMALL", 0)
    monkeypatch.setattr(build, "measured_attention", lambda *_: "eager")
    assert in_use(build.workbench(config).model) == "eager"
    assert json.loads((tmp_path / DECISION).read_text()) == {"attention": "eager"}
    monkeypatch.setattr(build, "measured_attention", lambda *_: pytest.fail("measured again"))
    assert in_use(build.workbench(config).model) == "eager"
    monkeypatch.delenv(SIMULATION)  # as an analysis of the finished run
    assert in_use(build.workbench(config).model) == "eager"


def test_float32_and_what_a_config_gives_are_not_measured(tmp_path, monkeypatch):
    monkeypatch.setenv(SIMULATION, "1")
    monkeypatch.setattr(attention, "SMALL", 0)
    for words, expected in (
        (("experiment=smoke",), "sdpa"),
        ((*HALF, "model.attention=eager"), "eager"),
        ((*HALF, "+model.config.attn_implementation=eager"), "eager"),
    ):
        bench = build.workbench(load([*words, f"run.dir={tmp_path}"]))
        assert in_use(bench.model) == expected
    assert recorded(tmp_path) == {}


def test_two_words_for_attention_that_differ_are_a_fault():
    words = [*HALF, "model.attention=sdpa", "+model.config.attn_implementation=eager"]
    with pytest.raises(ConfigError, match=r"model\.attention=sdpa: .* is eager; remove one of them"):
        load(words)
    assert load([*words[:-1], "+model.config.attn_implementation=sdpa"]).model.attention == "sdpa"


def test_the_plan_says_which_attention(tmp_path):
    config = load(HALF)
    assert "measured once" in config.describe()["attention"]
    given = replace(config, model=replace(config.model, attention="eager"))
    assert given.describe()["attention"] == "eager"
