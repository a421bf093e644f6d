"""What `export` writes is what stock PEFT and transformers load, with the logits of the run."""

import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForSequenceClassification

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import FedSAError, RunError
from fedsa_lora.learning.training import predict
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.reading import read_jsonl
from fedsa_lora.server.build import skeleton
from fedsa_lora.tasks.classification import cross_entropy


@cache  # the run is complete, so what is read of it stays true
def exporter(run):
    config = read_config(run)
    return Exporter(config, RunDirectory(run, config), skeleton(config))


@cache
def workbench(run):
    """A run's resident model, which each use overwrites completely."""
    return build.workbench(exporter(run).config)


def in_the_run(run, client: str) -> tuple[list[dict[str, torch.Tensor]], np.ndarray]:
    """Single-example inputs of a client's test part, and the logits of its model as the run has it."""
    config, bench = exporter(run).config, workbench(run)
    bench.model.merge(exporter(run).merged)
    bench.model.write(exporter(run).tensors(client))
    test = config.task.load_client(client).test
    inputs = [config.task.collate(test, np.array([i])) for i in range(len(test))]
    for batch in inputs:
        batch.pop("labels")
    return inputs, predict(bench.model, config.task, test, config.train)


def logits_of(model, inputs) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([model.eval()(**batch).logits for batch in inputs]).numpy()


@pytest.fixture(scope="module")
def minilm_run(run_smoke):
    return run_smoke(
        "model=minilm", "federation.clients=2", "federation.rounds=1", "train.steps=2", "evaluation.every=0",
        "evaluation.local_only=false", "evaluation.before=false", "head=frozen",
    )  # fmt: skip


@pytest.mark.parametrize("which", ["smoke_run", pytest.param("minilm_run", marks=pytest.mark.slow)])
def test_stock_peft_gives_the_logits_of_the_run(which, request, tmp_path, monkeypatch):
    run = request.getfixturevalue(which)
    inputs, expected = in_the_run(run, "1")
    folder = exporter(run).export("1", tmp_path / "adapter")
    stock = as_its_card_says(folder, monkeypatch)
    assert isinstance(stock, PeftModel)
    np.testing.assert_allclose(logits_of(stock, inputs), expected, rtol=0, atol=1e-5)
    # mean pooling is another computation in stock code
    tolerance = 1e-5 if which == "minilm_run" else 1e-6
    np.testing.assert_allclose(
        logits_of(stock, inputs[:1]), predict_one(run, "1", inputs[0]), rtol=0, atol=tolerance
    )


def as_its_card_says(folder, monkeypatch) -> torch.nn.Module:
    """The model that the code in the folder's model card loads."""
    monkeypatch.chdir(folder)
    said: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0], said)
    model: torch.nn.Module = said["model"]
    return model


@pytest.mark.parametrize("which", ["smoke_run", pytest.param("minilm_run", marks=pytest.mark.slow)])
def test_a_whole_model_is_loaded_as_its_card_says(which, request, tmp_path, monkeypatch):
    run = request.getfixturevalue(which)
    inputs, expected = in_the_run(run, "0")
    merged = as_its_card_says(exporter(run).export("0", tmp_path / "whole", merge=True), monkeypatch)
    np.testing.assert_allclose(logits_of(merged, inputs), expected, rtol=0, atol=1e-5)


def predict_one(run, client: str, batch) -> np.ndarray:
    bench = workbench(run)
    bench.model.write(exporter(run).tensors(client))
    return logits_of(bench.model.module, [batch])


def test_every_client_has_an_adapter_of_its_own_that_loads_by_its_config_alone(smoke_run, monkeypatch):
    inputs, expected = in_the_run(smoke_run, "0")
    loaded = {}
    for client in "0123":
        monkeypatch.chdir(smoke_run / "adapters" / client)  # PEFT looks for the backbone from here
        loaded[client] = AutoPeftModelForSequenceClassification.from_pretrained(".")
    found = {client: logits_of(model, inputs) for client, model in loaded.items()}
    np.testing.assert_allclose(found["0"], expected, rtol=0, atol=1e-5)
    assert all(not np.allclose(found["0"], found[other]) for other in "123")


def test_a_merged_model_needs_no_peft_and_gives_the_same_logits(smoke_run, tmp_path):
    inputs, expected = in_the_run(smoke_run, "2")
    folder = exporter(smoke_run).export("2", tmp_path / "merged", merge=True)
    merged = AutoModelForSequenceClassification.from_pretrained(str(folder))
    np.testing.assert_allclose(logits_of(merged, inputs), expected, rtol=0, atol=1e-5)


METHODS = {
    "soft": ["split=soft", "head=soft"],
    "merged into the backbone": ["split=share_ab", "strategy=fedex", "head=shared"],
    "ranks": ["split=share_ab", "strategy=flora", "federation.ranks={0: 2, 1: 4}"],
    "in turn": ["split=alternate"],
    "by importance": ["split=importance", "split.scope=client", "split.ema=0.0"],
    "coded both ways": ["codec=topk", "downlink=topk_int8"],
    "in groups": ["clusters=updates", "clusters.after=1"],
    "in groups, a part of the clients": ["clusters=updates", "clusters.after=1", "strategy.fraction_fit=0.5"],
    "a part of the clients": ["strategy.fraction_fit=0.5", "federation.rounds=2", "downlink=int8"],
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("overrides", METHODS.values(), ids=METHODS)
def test_what_is_exported_of_any_method_is_the_model_that_was_measured(run_smoke, tmp_path, overrides):
    run = run_smoke(*overrides, "evaluation.local_only=false")
    rows = read_jsonl(run / "clients.jsonl")
    labels = {c: exporter(run).config.task.load_client(c).test.labels for c in "0123"}
    measured = {row["client"]: row for row in rows if row["phase"] == "evaluate"}
    for client, row in measured.items():
        inputs, logits = in_the_run(run, client)
        assert cross_entropy(logits, labels[client]) == pytest.approx(row["loss"], abs=1e-5)
    folder = exporter(run).export("1", tmp_path / "whole", merge=True)
    stock = AutoModelForSequenceClassification.from_pretrained(str(folder))
    inputs, logits = in_the_run(run, "1")
    np.testing.assert_allclose(logits_of(stock, inputs), logits, rtol=0, atol=1e-4)
    if exporter(run).merged:
        with pytest.raises(RunError, match=r"merged updates into the frozen weights.*--merge"):
            exporter(run).export("1", tmp_path / "adapter")


@pytest.mark.usefixtures("undrawn")
def test_a_mixture_of_experts_has_no_adapter_folders_and_says_why_it_cannot_be_exported(run_smoke, tmp_path):
    run = run_smoke(
        "split=share_ab", "personalisation=experts", "run.report=true", "federation.rounds=1",
        "federation.clients=2", "evaluation.local_only=false",
    )  # fmt: skip
    assert (run / "report.html").is_file()
    assert not (run / "adapters").exists()
    for merge in (False, True):
        with pytest.raises(RunError, match=r"Experts.*no stock model computes"):
            exporter(run).export("0", tmp_path / "folder", merge=merge)
    assert not (tmp_path / "folder").exists()


@pytest.mark.usefixtures("undrawn")
def test_the_card_names_the_labels_in_the_order_of_this_clients_outputs(run_smoke):
    run = run_smoke(
        "federation.label_meaning=per_client", "federation.rounds=1", "evaluation.local_only=false",
        "run.report=true",
    )  # fmt: skip
    task = read_config(run).task
    for client in "01":
        card = (run / "adapters" / client / "README.md").read_text()
        for number, label in enumerate(task.client_labels(client)):
            assert f"{number}. {label}" in card
        rows = task.split.clients[client].train
        names = [task.labels()[i] for i in task.data.train.labels[rows]]
        own = task.load_client(client).train.labels
        assert [task.client_labels(client)[i] for i in own] == names


def test_an_unknown_client_is_an_error_that_lists_those_there_are(smoke_run):
    with pytest.raises(FedSAError, match=r"no client 'nobody'.*'0', '1', '2', '3'"):
        exporter(smoke_run).tensors("nobody")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", ["finetune", "reptile", "perfedavg"])
def test_a_model_that_is_trained_on_before_it_is_used_is_exported_as_it_was_measured(
    run_smoke, tmp_path, method
):
    run = run_smoke(
        f"personalisation={method}", "federation.rounds=2", "federation.clients=2", "head=shared",
        "split=share_ab", "evaluation.local_only=false", "run.report=true",
    )  # fmt: skip
    assert not (run / "adapters").exists()  # it takes the clients' data
    config = read_config(run)
    test = config.task.load_client("1").test
    rows = [r for r in read_jsonl(run / "clients.jsonl") if r["phase"] == "evaluate" and r["client"] == "1"]
    batch = config.task.collate(test, np.arange(len(test)))
    batch.pop("labels")
    whole = AutoModelForSequenceClassification.from_pretrained(
        str(exporter(run).export("1", tmp_path / "whole", merge=True))
    )
    assert cross_entropy(logits_of(whole, [batch]), test.labels) == pytest.approx(rows[-1]["loss"], abs=1e-4)


def test_dora_on_every_dense_layer_of_a_mean_pooled_encoder(run_smoke, tmp_path, monkeypatch):
    run = run_smoke(
        "model=tiny_bert", "model.pooling=mean", "lora=dora", "lora.target_modules=[dense]",
        "federation.clients=2", "federation.rounds=1", "evaluation.local_only=false",
    )  # fmt: skip
    inputs, expected = in_the_run(run, "1")
    stock = as_its_card_says(exporter(run).export("1", tmp_path / "adapter"), monkeypatch)
    np.testing.assert_allclose(logits_of(stock, inputs), expected, rtol=0, atol=2e-5)


def test_what_an_export_shares_with_its_run_is_weights_alone(smoke_run, tmp_path):
    folder = exporter(smoke_run).export("1", smoke_run.parent / "beside")
    (folder / "backbone" / "config.json").write_text("{}")
    assert "hidden_size" in (smoke_run / "backbone" / "config.json").read_text()
