"""The global model: what all clients hold, as stock code loads it, or a mean that its card calls one."""

import re

import numpy as np
import pytest
import torch
from test_export import as_its_card_says, logits_of

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.analysis.global_model import export_mean, global_tensors, refuse_global
from fedsa_lora.analysis.mean_model import mean_model
from fedsa_lora.cli import main
from fedsa_lora.client import build
from fedsa_lora.commands.screen import EXIT_FAILED
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import RunError
from fedsa_lora.learning.training import predict
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.reading import read_jsonl
from fedsa_lora.server.build import skeleton

QUICK = ["evaluation.local_only=false", "evaluation.before=false", "federation.rounds=1"]
ALL_SHARED = ["split=share_ab", "head=shared"]
WHOLE = ["lora=none", "split=full", "head=shared"]


def exporter_of(run) -> Exporter:
    config = read_config(run)
    return Exporter(config, RunDirectory(run, config), skeleton(config))


def answers(exporter: Exporter, client: str) -> tuple[list[dict[str, torch.Tensor]], np.ndarray]:
    """A client's test inputs one by one, and the logits of its own model as the run has it."""
    bench, task = exporter.bench, exporter.config.task
    bench.model.merge(exporter.merged)
    bench.model.write(exporter.tensors(client))
    test = task.load_client(client).test
    inputs = [task.collate(test, np.array([i])) for i in range(len(test))]
    for batch in inputs:
        batch.pop("labels")
    return inputs, predict(bench.model, task, test, exporter.config.train)


@pytest.fixture(scope="module")
def shared_run(run_smoke):
    """All clients hold one model, which stands in the run."""
    return run_smoke(
        *QUICK, *ALL_SHARED, "run.report=true", "downlink=int8", "strategy.fraction_fit=0.5",
    )  # fmt: skip


def test_the_global_model_answers_as_every_client_after_the_last_broadcast(shared_run, monkeypatch):
    exporter = exporter_of(shared_run)
    stock = as_its_card_says(shared_run / "global", monkeypatch)
    for client in "0123":
        assert all(
            np.array_equal(a, exporter.tensors(client)[n]) for n, a in global_tensors(exporter).items()
        )
        inputs, expected = answers(exporter, client)
        np.testing.assert_allclose(logits_of(stock, inputs), expected, rtol=0, atol=1e-6)


def test_what_the_card_of_a_run_says_is_what_the_export_measures(shared_run, tmp_path, capsys):
    card = (shared_run / "global" / "README.md").read_text()
    assert main(["export", str(shared_run), "--global", "--to", str(tmp_path / "to")]) == 0
    again = (tmp_path / "to" / "README.md").read_text()
    rows = [row for row in read_jsonl(shared_run / "clients.jsonl") if row["phase"] == "evaluate"][-4:]
    mean = f"Accuracy {np.mean([row['accuracy'] for row in rows]):.1%}, the mean over the test parts of 4"
    together = np.average([row["accuracy"] for row in rows], weights=[row["examples"] for row in rows])
    assert mean in " ".join(card.split())
    assert mean in " ".join(again.split())
    assert f"{together:.1%} on all their examples together" in " ".join(again.split())
    for text in (card, again):
        assert "# Global model" in text
        assert "no part of it is local" in text
        assert "client-specific" not in text


METHODS = {
    "the whole model": WHOLE,
    "merged into the backbone": [*ALL_SHARED, "strategy=fedex"],
    "A frozen": ["split=ffa", "head=shared"],
    "in turn, a frozen head": ["split=alternate", "head=frozen"],
    "A by the server": ["split=fedsvd", "strategy=fedsvd", "head=shared"],
    "stacked ranks": [*ALL_SHARED, "strategy=flora", "federation.ranks={0: 2, 1: 4}"],
    "relative to the weights": [*ALL_SHARED, "lora=pissa"],
    "of images": [*WHOLE, "task=image", "model=tiny_vit"],
}  # fmt: skip


@pytest.mark.usefixtures("undrawn")
@pytest.mark.sampled(8)
@pytest.mark.parametrize("overrides", METHODS.values(), ids=METHODS)
def test_whatever_the_method_the_global_model_is_the_one_of_every_client(run_once, monkeypatch, overrides):
    run = run_once(*QUICK, *overrides, "federation.clients=2", "run.report=true")
    exporter = exporter_of(run)
    whole = exporter.config.lora is None or bool(exporter.merged)
    assert (run / "global" / "adapter_config.json").exists() != whole
    stock = as_its_card_says(run / "global", monkeypatch)
    inputs, expected = answers(exporter, "1")
    np.testing.assert_allclose(logits_of(stock, inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "said"), [("finetune", "Each client fine-tunes it"), ("ditto", "uses a personal model")]
)
def test_the_global_model_under_a_personalisation_method_is_the_common_one(
    run_smoke, monkeypatch, method, said
):
    run = run_smoke(*QUICK, *ALL_SHARED, f"personalisation={method}", "run.report=true")
    exporter = exporter_of(run)
    card = " ".join((run / "global" / "README.md").read_text().split())
    assert said in card
    assert ("It was not measured" in card) == (method == "finetune")
    stock = as_its_card_says(run / "global", monkeypatch)
    inputs, _ = answers(exporter, "1")
    exporter.bench.model.write(exporter.own_model("1").common)
    expected = logits_of(exporter.bench.model.module, inputs)
    np.testing.assert_allclose(logits_of(stock, inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("undrawn")
def test_of_full_averaging_the_weights_are_those_of_the_checkpoint(run_once, monkeypatch):
    run = run_once(*QUICK, *WHOLE, "federation.clients=2", "run.report=true")
    exporter = exporter_of(run)
    assert "; head: shared, base: shared." in (run / "global" / "README.md").read_text()
    stock = dict(as_its_card_says(run / "global", monkeypatch).named_parameters())
    started = dict(build.model(exporter.config).module.named_parameters())
    moved = exporter.directory.last_checkpoint().tensors
    assert moved.keys() >= {name for name in started if "embeddings" in name}
    for name, change in moved.items():
        plain = name.removesuffix(".difference")
        start = started[plain].detach() if name in exporter.model.relative else torch.zeros(change.shape)
        torch.testing.assert_close(stock[plain].detach(), start + torch.from_numpy(change), rtol=0, atol=0)


def test_where_something_is_local_the_reason_and_what_can_be_had_are_named(smoke_run, tmp_path, capsys):
    assert not (smoke_run / "global").exists()
    assert main(["export", str(smoke_run), "--global", "--to", str(tmp_path / "to")]) == EXIT_FAILED
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "has no global model: each client has its own version of the B matrices and the classification head"
        in said
    )
    assert "--client NAME" in said
    assert "--global --mean-b an approximation" in said
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "soft": (["split=soft", "head=soft"], "version of the B matrices and the classification head"),
    "some layers": (["split=least_variance", "split.count=1", "head=shared"], "version of .*the B matrices"),
    "adaptive": (
        ["split=importance", "split.pool=[A,B]", "split.allow=[A,B]", "head=shared"],
        "Importance decides in each round which tensors are shared",
    ),
    "meanings": (
        [*ALL_SHARED, "federation.label_meaning=per_client"], "an output stands for another class for client",
    ),
    "groups": (
        [*ALL_SHARED, "clusters=updates", "clusters.after=1", "federation.rounds=2"], "are in 2 groups, each",
    ),
    "mixture": ([*ALL_SHARED, "personalisation=experts"], "no stock model computes"),
}  # fmt: skip


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", REFUSED)
def test_a_run_whose_clients_differ_has_no_global_model(run_smoke, tmp_path, name):
    overrides, reason = REFUSED[name]
    run = run_smoke(*QUICK, *overrides)
    with pytest.raises(RunError, match=reason) as caught:
        refuse_global(exporter_of(run))
    has_mean = name in ("soft", "some layers", "adaptive")
    assert ("--mean-b" in str(caught.value)) == has_mean
    if not has_mean:
        with pytest.raises(RunError, match=reason):
            export_mean(exporter_of(run), tmp_path / "to", merge=True)


def test_the_mean_is_the_weighted_mean_of_what_is_local_beside_what_is_common(smoke_run):
    exporter = exporter_of(smoke_run)
    mean = mean_model(exporter)
    assert (mean.roles, mean.clients) == (("B", "head"), 4)
    weights = [exporter.config.task.describe().clients[client].train for client in "0123"]
    own = [exporter.tensors(client) for client in "0123"]
    for spec in exporter.model.layout:
        values = [tensors[spec.name].astype(np.float64) for tensors in own]
        if spec.role == "A":
            np.testing.assert_array_equal(mean.tensors[spec.name], own[0][spec.name])
        else:
            expected = np.average(values, axis=0, weights=weights)
            np.testing.assert_allclose(mean.tensors[spec.name], expected, rtol=1e-6, atol=1e-9)


def test_its_card_calls_it_an_approximation_with_its_own_measure(smoke_run, tmp_path, monkeypatch, capsys):
    assert main(["export", str(smoke_run), "--global", "--mean-b", "--to", str(tmp_path / "mean")]) == 0
    card = " ".join((tmp_path / "mean" / "README.md").read_text().split())
    assert "This is an approximation. Each client has its own version of the B matrices" in card
    assert "No client trained or used this model" in card
    stock = as_its_card_says(tmp_path / "mean", monkeypatch)
    exporter = exporter_of(smoke_run)
    right = []
    for client in "0123":
        inputs, _ = answers(exporter, client)
        labels = exporter.config.task.load_client(client).test.labels
        right.append(np.mean(logits_of(stock, inputs).argmax(1) == labels))
    assert f"Accuracy {np.mean(right):.1%}, the mean over the test parts of 4 clients" in card


def test_the_mean_of_clients_that_have_the_same_b_is_that_b_to_the_bit(run_smoke):
    passed = run_smoke(*QUICK, "head=frozen", "federation.b_passing=true", "federation.clients=3")
    exporter = exporter_of(passed)
    mean = mean_model(exporter)
    assert mean.roles == ()
    for name, value in exporter.tensors("2").items():
        np.testing.assert_array_equal(mean.tensors[name], value)


def test_a_mean_that_is_none_is_refused(shared_run, smoke_run, run_smoke, tmp_path, capsys):
    with pytest.raises(RunError, match="has a global model without local parts: leave out --mean-b"):
        export_mean(exporter_of(shared_run), tmp_path / "to")
    elsewhere = ["export", str(smoke_run), "--global", "--mean-b", "--store", str(tmp_path / "empty")]
    assert main(elsewhere) == EXIT_FAILED
    assert "lacks the state of 4 of 4 clients that trained, for example '0'" in capsys.readouterr().err
    alone = run_smoke(*QUICK, "split=local_only", "federation.clients=2")
    with pytest.raises(RunError, match=r"A and B both differ between clients in \d+ layers"):
        export_mean(exporter_of(alone), tmp_path / "to")
    assert main(["export", str(shared_run), "--client", "0", "--mean-b"]) == EXIT_FAILED
    assert re.search("--mean-b is a mean over clients", capsys.readouterr().err)
