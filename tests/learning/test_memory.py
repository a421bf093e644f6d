"""Memory of a step: what is counted, what checkpoints save, and the batch that fits."""

from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from cohort_cases import bench

from fedsa_lora.client import build
from fedsa_lora.config.compose import load
from fedsa_lora.decision import recorded
from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.learning import memory
from fedsa_lora.learning.checkpointing import checkpoint_layers
from fedsa_lora.learning.memory import Room, Tally, free_bytes, pass_bytes
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.report.tables import plan_tables

SETTINGS = TrainSettings()
CPU = torch.device("cpu")


def test_bytes_are_those_of_the_tensors_that_are_alive_and_the_most_of_them():
    with Tally() as tally:
        one = torch.zeros(1000)
        view = one[10:].view(-1, 2)
        two = one + 1
        assert tally.alive == tally.most == 8000
        del one
        assert tally.alive == 8000, "a view keeps it"
        del view
        assert (tally.alive, tally.most) == (4000, 8000)
        del two
    assert tally.alive == 0


@pytest.mark.parametrize("kind", ["bert", "words"])
def test_a_pass_takes_less_with_checkpoints_and_leaves_the_model_as_it_was(kind):
    of = bench(kind, dropout=True)
    before = of.model.read()
    whole = pass_bytes(of.model, of.task, of.examples(0), SETTINGS)
    checkpoint_layers(of.model)
    assert pass_bytes(of.model, of.task, of.examples(0), SETTINGS) < whole
    assert all(np.array_equal(before[name], value) for name, value in of.model.read().items())
    assert not any(p.requires_grad or p.grad is not None for p in of.model.module.parameters())
    assert not of.model.module.training


def test_a_pass_of_more_tokens_takes_more():
    of = bench("bert")
    examples = of.examples(0)
    short = pass_bytes(of.model, of.task, replace(examples, lengths=-examples.lengths), SETTINGS)
    assert pass_bytes(of.model, of.task, examples, SETTINGS) > 1.5 * short


@pytest.mark.parametrize(
    ("free", "expected"), [(0, 1), (2.4e6, 1), (5e6, 2), (19e6, 4), (20e6, 8), (1e8, 32), (1e12, 64)]
)
def test_a_batch_is_a_power_of_two_within_its_share_of_the_memory(free, expected):
    """An example takes 1 MB, and four tenths of what is free are for tensors, of each process its part."""
    assert Room(10**6, 8, int(free), 1).batch == expected
    assert Room(10**6, 8, int(3 * free), 3).batch == expected


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_memory_that_a_container_does_not_allow_is_not_free(version, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert 0 < free_bytes(CPU) <= psutil.virtual_memory().total
    (tmp_path / "memory").mkdir()
    limit, used, stat = memory.GROUPS[version == "v1"]
    (tmp_path / limit).write_text("50000\n")
    (tmp_path / used).write_text("30000\n")
    (tmp_path / stat).write_text("anon 20000\ninactive_file 5000\n")
    assert free_bytes(CPU) == 25_000
    (tmp_path / limit).write_text("max\n")
    assert free_bytes(CPU) > 25_000


def test_a_run_decides_once_and_a_resumption_keeps_it(tmp_path, monkeypatch):
    config = load(["experiment=smoke", "train.batch_size=auto", f"run.dir={tmp_path}"])
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**12)
    first = build.workbench(config)
    assert first.settings.batch_size == first.alone.settings.batch_size == 64
    assert recorded(tmp_path)["batch_size"] == "64"
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1)
    assert build.workbench(config).settings.batch_size == 64


def test_what_was_decided_is_a_number(tmp_path):
    (tmp_path / "decision.json").write_text('{"batch_size": "many"}')
    with pytest.raises(RunError, match=r"batch_size is 'many', expected a number of at least 1"):
        build.workbench(load(["experiment=smoke", "train.batch_size=auto", f"run.dir={tmp_path}"]))


def test_only_a_simulation_decides(tmp_path):
    words = ["experiment=smoke", "train.batch_size=auto"]
    deployed = ["federation=deployment", "federation.superlink=localhost:9093", "federation.insecure=true"]
    with pytest.raises(ConfigError, match=r"train\.batch_size=auto: memory differs between nodes"):
        load([*words, *deployed])
    with pytest.raises(ConfigError, match="expected a number"):
        load(words).train.check_deployed()


def test_the_plan_shows_what_is_decided(tmp_path):
    from fedsa_lora.launch.plan import make_plan

    config = load(
        [
            "experiment=smoke",
            "train.batch_size=auto",
            "train.accumulate=4",
            f"run.dir={tmp_path}",
            "train.gradient_checkpointing=true",
        ]
    )
    plan = make_plan(config)

    def shown() -> dict[str, str]:
        (table,) = plan_tables(config, plan, {})
        return dict(zip(*(list(column.cells) for column in table.columns), strict=True))

    lines = shown()
    assert lines["rounds"].endswith("x batch 4 x auto")
    assert "largest power of two up to 64" in lines["batch size"]
    assert "one at a time: a step is computed in several passes" in lines["machine"]
    assert "recomputed" in lines["checkpointing"]
    (tmp_path / "decision.json").write_text('{"batch_size": "16"}')
    assert shown()["rounds"].endswith("x batch 4 x 16")
