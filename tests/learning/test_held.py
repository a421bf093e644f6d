"""Frozen weights held in bfloat16: what is trained stays float32, and a cohort trains as clients do alone."""

from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from cohort_cases import bench

from fedsa_lora.client import build
from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError
from fedsa_lora.launch.plan import fit_simulation, make_plan
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.cohort import Cohort
from fedsa_lora.learning.cohort.fit import why_not
from fedsa_lora.learning.job import OneByOne
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import predict, round_batches, train
from fedsa_lora.server.build import skeleton

HALF = ("experiment=smoke", "head=shared", "model.dtype=bf16", "train.precision=bf16")
LORAS = ("default", "dora", "vera", "pissa", "orthogonal")


def kinds(model: AdapterModel) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """The types of the tensors in the layout and of norms, and of all others."""
    exact = {id(model.parameter(name)) for name in model.layout.names}
    every = {n: p for n, p in model.module.named_parameters() if "original_module" not in n}
    exact |= {id(p) for n, p in every.items() if "LayerNorm" in n}
    return {p.dtype for p in every.values() if id(p) in exact}, {
        p.dtype for p in every.values() if id(p) not in exact
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize("words", [*([f"lora={name}"] for name in LORAS), ["model.pooling=mean"]])
def test_what_is_frozen_is_held_in_bf16_and_what_is_trained_in_fp32(words):
    config = load([*HALF, *words])
    model, empty = build.model(config), skeleton(config)
    assert kinds(model) == kinds(empty) == ({torch.float32}, {torch.bfloat16})
    assert empty.layout == model.layout
    model.write(model.initial(0))
    before, data = model.read(), config.task.load_client("0")
    batches = round_batches(data.train.lengths, config.train, np.random.default_rng(0))
    names = frozenset(model.layout.names)
    train(model, config.task, data.train, config.train, trained=names, batches=batches, torch_seed=0)
    assert any((value != before[name]).any() for name, value in model.read().items())
    assert np.isfinite(predict(model, config.task, data.test, config.train)).all()


@pytest.mark.parametrize("kind", ["bert", "words"])
def test_a_cohort_over_weights_in_bf16_stays_near_training_alone(kind):
    made = bench(kind)
    trained = {id(made.model.parameter(name)) for name in made.layout.names}
    for parameter in made.model.module.parameters():
        if id(parameter) not in trained and parameter.dim() > 1:
            parameter.data = parameter.data.bfloat16()
    settings = TrainSettings(optimizer="sgd", lr=0.1, steps=4, batch_size=4, precision="bf16")
    jobs = [made.job(client, settings) for client in range(3)]
    assert [why_not(job, made.model, made.task) for job in jobs] == [None] * 3
    alone, cohort = OneByOne(made.model, made.task)(jobs), Cohort(made.model, made.task, 3)(jobs)
    for one, other in zip(alone, cohort, strict=True):
        assert abs(one.report.loss - other.report.loss) < 0.05
        for name in one.values:
            step = np.abs(one.values[name] - one.start[name]).max()
            assert np.abs(one.values[name] - other.values[name]).max() <= 0.15 * step + 1e-3


def test_what_bf16_cannot_go_with_is_a_fault():
    for words, message in (
        (["train.precision=fp32"], "expected train.precision=bf16"),
        (["train.precision=fp16"], "expected train.precision=bf16"),
        (["lora=none", "split=full"], "without adapters all weights are trained"),
        (["split=share_ab", "strategy=flora"], "too coarse for it so; expected model.dtype=fp32"),
    ):
        with pytest.raises(ConfigError, match=message):
            load([*HALF, *words])
    load([*HALF, "split=share_ab", "strategy=flexlora"])


def test_the_plan_counts_the_weights_as_they_are_held(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 16e9}))
    cpu, held = torch.device("cpu"), load(HALF)
    weights = 3_212_749_824  # parameters of Llama-3.2-3B
    with pytest.raises(ConfigError, match=r"39\.6 GB.*12\.9 GB of weights in fp32; model\.dtype=bf16"):
        fit_simulation(load(["experiment=smoke"]), cpu, 4 * weights)
    fit_simulation(held, cpu, held.model.held.itemsize * weights)


def test_flash_attention_is_refused_where_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [f"run.dir={tmp_path}/run", "experiment=smoke", "model.attention=flash_attention_2"]
    with pytest.raises(ConfigError, match=r"half precision only; expected train\.precision=bf16"):
        load(words)
    config = load([*words, "train.precision=bf16"])
    assert config.describe()["attention"] == "flash_attention_2"
    with pytest.raises(ConfigError, match=r"needs a CUDA device, .* cpu: set model\.attention=sdpa"):
        make_plan(config)
    with pytest.raises(ConfigError, match=r"attention: it is a setting of the model; set model\.attention"):
        load(["machine.attention=eager"])


def test_a_run_that_was_recorded_with_attention_among_the_machines_words_is_read(tmp_path):
    from fedsa_lora.config.compose import read_config, to_yaml

    config = load(["experiment=smoke", f"run.dir={tmp_path}"])
    for given, expected in (("auto", "auto"), ("eager", "eager")):
        machine = config.resolved["machine"] | {"attention": given}
        old = replace(config, resolved=config.resolved | {"machine": machine})
        (tmp_path / "config.yaml").write_text(to_yaml(old))
        assert read_config(tmp_path).model.attention == expected
