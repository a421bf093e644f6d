"""Federations of a dual encoder: what is common and what is each client's own, and exports that stock PEFT
and transformers load by the code of their cards."""

import io
import re
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from dual_encoders import pictures, write_clip
from PIL import Image
from test_image_runs import SMALL, shared

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import ModelError
from fedsa_lora.learning.training import predict
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.server.build import skeleton

CLIP = ("train.lr=0.02", "task.test_split=null", "task.class_names=null", "task.image=image",
        "partition=iid", "evaluation.every=1", "task.templates=['a photo of a {}.','one {}']")  # fmt: skip
LORA = ("lora=clip_encoder", "lora.r=4", "lora.dropout=0")
KINDS = {
    "prompts": [*LORA, "head=local", "lora.towers=both"],
    "linear": [*LORA, "head=shared", "task.classifier=linear"],
    "all weights": ["lora=none", "split=full", "head=shared"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run by the way that it knows classes, each made once."""
    place = tmp_path_factory.mktemp("clip")
    words = [f"model.path={write_clip(place / 'model')}", f"task.dataset={pictures(place / 'images', 60)}"]
    found = {}

    def run(kind: str):
        if kind not in found:
            small = ["task=clip", *SMALL[1:], *CLIP, *words, *KINDS[kind]]
            found[kind] = run_in_process([*small, f"run.dir={place / kind}"])
        return found[kind]

    return run


def exporter_of(run):
    config = read_config(run)
    return config, Exporter(config, RunDirectory(run, config), skeleton(config))


def test_A_of_both_towers_is_common_and_B_is_each_clients_own(made):
    config, exporter = exporter_of(made("prompts"))
    common = shared(config)
    assert {name.split("_model.")[0] for name in common} == {"vision", "text"}
    assert all(".lora_A" in name for name in common)
    values = [exporter.tensors(client) for client in exporter.clients()]
    for name in values[0]:
        same = all(np.array_equal(values[0][name], other[name]) for other in values[1:])
        assert same == (".lora_A" in name), name
    start = exporter.initial
    assert all(not np.array_equal(common[name], start[name]) for name in common)


def test_a_linear_head_is_shared_as_its_difference_from_the_prompts(made):
    config, _ = exporter_of(made("linear"))
    common = shared(config)
    assert np.abs(common["classifier.weight.difference"]).max() > 0
    assert not any("text_model" in name for name in common)


def test_without_lora_both_towers_and_the_scale_of_the_logits_are_trained(made):
    common = shared(read_config(made("all weights")))
    assert {name.split("_model.")[0] for name in common} > {"vision", "text", "logit_scale"}
    assert common["logit_scale"].shape == ()
    assert common["logit_scale"] != 0, "exchanged as its difference from the start"


@pytest.mark.parametrize(
    ("kind", "merge"), [("prompts", False), ("prompts", True), ("all weights", True)], ids=str
)
def test_an_export_answers_by_the_code_of_its_card_as_the_run_did(made, tmp_path, monkeypatch, kind, merge):
    config, exporter = exporter_of(made(kind))
    exporter.export("1", tmp_path / "export", merge=merge)
    task, bench = config.task, build.workbench(config)
    bench.model.write(exporter.tensors("1"))
    chosen = task.split.clients["1"].test
    expected = predict(bench.model, task, task.load_client("1").test, config.train)

    text = (tmp_path / "export" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "export")
    said: dict[str, Any] = {}
    said["pictures"] = [picture for _, picture in sorted(_pictures(task, chosen).items())]
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], said)
    with torch.no_grad():
        exec(re.sub("^    ", "", re.findall(r"```\n\n((?:    .*\n|\n)+)", text)[0], flags=re.M), said)
        logits = said["model"].logit_scale.exp() * said["images"] @ said["texts"].T
    np.testing.assert_allclose(logits.numpy(), expected, rtol=0, atol=1e-4)
    assert said["classes"].tolist() == expected.argmax(1).tolist()


def _pictures(task, chosen):
    """The pictures of some rows, by their place."""
    rows = pq.read_table(task.dataset)["image"]
    return {place: Image.open(io.BytesIO(rows[int(row)].as_py())) for place, row in enumerate(chosen)}


def test_a_linear_head_is_not_exported_as_what_no_stock_model_computes(made, tmp_path):
    _, exporter = exporter_of(made("linear"))
    with pytest.raises(ModelError, match=r"no stock model has a linear layer .* fedsa-lora evaluate"):
        exporter.export("1", tmp_path / "export")
    assert not (tmp_path / "export").exists()
