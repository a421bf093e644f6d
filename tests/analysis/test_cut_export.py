"""What is left of a run of split learning: the trunk at the server, and its parts as one model."""

import json

import numpy as np
import pytest
import torch
from cut_cases import TINY
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from test_cut_runs import server_memory
from transformers import AutoModelForCausalLM

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.analysis.reevaluate import reevaluate
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.trunk import of_trunk
from fedsa_lora.server.build import skeleton

WORDS = (*TINY, "train.steps=2", "federation.train_examples=[8,12]")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Each client has a trunk of its own."""
    folder = tmp_path_factory.mktemp("cut") / "run"
    return run_in_process([*WORDS, "cut.trunk=per_client", f"run.dir={folder}"])


def test_the_trunk_is_the_mean_over_clients_or_one_for_each(run, tmp_path):
    shared = run_in_process([*WORDS, f"run.dir={tmp_path / 'run'}"])
    examples = {row["client"]: row["examples"] for row in fits(shared)}
    mean, own = of_trunk(server_memory(shared))[""], of_trunk(server_memory(run))
    assert set(own) == {"", *examples}
    assert len({*examples.values()}) > 1
    for name, array in mean.items():
        expected = sum(n * own[client][name].astype(np.float64) for client, n in examples.items())
        np.testing.assert_allclose(array, expected / sum(examples.values()), rtol=1e-6, atol=1e-9)
        assert not np.array_equal(own["0"][name], own["1"][name]) or "lora" not in name


def fits(path):
    found = [json.loads(line) for line in (path / "clients.jsonl").read_text().splitlines()]
    return [row for row in found if row["phase"] == "fit"]


def test_a_run_put_together_again_is_measured_as_its_parts_were(run, tmp_path):
    for found in reevaluate(run):
        assert found.value == pytest.approx(found.recorded, rel=1e-6)
    config = read_config(run)
    exporter = exporter_of(run)
    merged = stock(exporter.export("1", tmp_path / "merged", merge=True))
    adapter = exporter.export("1", tmp_path / "adapter")
    assert (adapter / "adapter_config.json").exists()
    bench = build.workbench(config.whole)
    data = bench.task.load_client("1")
    batch = bench.task.collate(data.test, np.arange(4))
    bench.model.write(exporter.tensors("1"))
    with torch.no_grad():
        expected = bench.model.module(**batch).logits
        assert (merged(**batch).logits - expected).abs().max() < 1e-4


def exporter_of(path):
    config = read_config(path)
    return Exporter(config, RunDirectory(path, config), skeleton(config))


def test_the_adapter_of_all_parts_is_merged_and_unmerged_by_peft(run, tmp_path):
    """Merged it gives the weights of the merged export, unmerged the base, each to the rounding of a sum."""
    exporter = exporter_of(run)
    folder = exporter.export("1", tmp_path / "adapter")
    whole = dict(stock(exporter.export("1", tmp_path / "merged", merge=True)).named_parameters())
    model = PeftModel.from_pretrained(stock(folder / "backbone"), folder)
    named = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    layers = {name.removeprefix("base_model.model."): layer.get_base_layer().weight for name, layer in named}
    assert {int(name.split(".")[2]) for name in layers} == {0, 1, 2, 3, 4}, "of both sides"
    base = {name: weight.detach().clone() for name, weight in layers.items()}
    model.merge_adapter()
    for name, weight in layers.items():
        torch.testing.assert_close(weight, whole[f"{name}.weight"], rtol=0, atol=1e-6)
        assert (weight - base[name]).abs().max() > 1e-5, f"nothing was merged into {name}"
    model.unmerge_adapter()
    for name, weight in layers.items():
        torch.testing.assert_close(weight, base[name], rtol=0, atol=1e-6)


def stock(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()
