"""Preferences: the loss and the measures of DPO against their formulas, and a federation that learns some."""

import json

import numpy as np
import pytest
import torch
from language import LLAMA, write_tokenizer

from fedsa_lora.analysis.evaluation import evaluate_run
from fedsa_lora.analysis.reevaluate import reevaluate
from fedsa_lora.client import build
from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.learning.training import Objective
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl

SUMS = [(i, (7 * i) % 10) for i in range(40)]


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """Two clients with preferences for answers that end in a full stop, and a tiny model without dropout."""
    rows, tokenizer = tmp_path_factory.mktemp("rows"), write_tokenizer(tmp_path_factory.mktemp("bytes"))
    lines = [
        {"prompt": f"{a} and {b}?", "chosen": f"It is {a + b}.", "rejected": "?" * (1 + a % 3)}
        for a, b in SUMS
    ]
    (rows / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = ",".join(f"{key}: {value}" for key, value in LLAMA.items())
    return [
        "task=preference", f"task.dataset={rows}", "task.template=alpaca", f"model.tokenizer={tokenizer}",
        "model.path=", "model.pretrained=false", f"+model.config={{{config}}}",
        "partition=iid", "federation.clients=2", "federation.test_examples=6", "federation.rounds=3",
        "train.steps=6", "train.batch_size=4", "train.lr=0.01", "lora.dropout=0",
        "evaluation.local_only=false", "run.report=false",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def bench(words):
    return build.workbench(load(words))


def summed(module, ids, labels) -> float:
    """The loss of an answer in nats, of a row alone, from the logits of the model."""
    with torch.no_grad():
        logits = module(input_ids=torch.from_numpy(ids)[None]).logits[0].double().log_softmax(dim=-1)
    return -sum(float(logits[at - 1, labels[at]]) for at in range(1, len(labels)) if labels[at] != -100)


def both(module, examples) -> np.ndarray:
    features = examples.features
    return np.array(
        [
            [
                summed(module, features[f"{kind}input_ids"][at], features[f"{kind}labels"][at])
                for at in range(len(examples))
            ]
            for kind in ("", "rejected_")
        ]
    ).T


def test_references_are_those_of_the_model_as_the_run_began(bench, words):
    data = bench.data("0")
    plain = load(words).task.build_model(seed=load(words).seed)
    for part in (data.train, data.test):
        np.testing.assert_allclose(part.features["reference"], both(plain, part), rtol=1e-5)
    assert bench.data("0") is data, "computed once"
    assert len(data.validation.features["reference"]) == 0


def test_loss_and_measures_are_those_of_the_formula(bench):
    task, model = bench.task, bench.model
    examples = bench.data("1").train.at(np.arange(9))
    rng = np.random.default_rng(0)
    model.write(
        {n: (v + 0.05 * rng.normal(size=v.shape)).astype(np.float32) for n, v in bench.initial.items()}
    )
    model.set_mode(training=False)
    model.module.double()
    reference = np.float32(examples.features["reference"])
    s = both(model.module, examples)
    margins = (reference[:, 0] - s[:, 0]) - (reference[:, 1] - s[:, 1])
    expected = np.log1p(np.exp(-task.beta * margins)).mean()
    with torch.no_grad():
        found = Objective(model, task, examples, bench.settings).loss(np.arange(9)).item()
        batches = [task.collate(examples, part) for part in (np.arange(4), np.arange(4, 9))]
        predictions = torch.cat([task.predict(model.module, batch) for batch in batches]).numpy()
    model.module.float()
    assert found == pytest.approx(expected, rel=1e-6)
    measured = task.evaluate(predictions, examples.labels)
    assert measured["loss"] == pytest.approx(expected, rel=1e-6)
    assert 0 < measured["preference_accuracy"] == (margins > 0).mean() < 1


def test_where_the_model_began_no_answer_is_preferred(bench):
    train = bench.data("0").train
    reference = train.features["reference"]
    found = bench.task.evaluate(np.concatenate([reference, reference], axis=1), train.labels)
    assert found == {"preference_accuracy": 0.5, "loss": pytest.approx(np.log(2))}


def test_a_federation_learns_what_is_preferred_and_is_measured_again_alike(words, tmp_path):
    path = run_in_process([*words, f"run.dir={tmp_path / 'run'}"])
    rows = read_jsonl(path / "rounds.jsonl")
    assert rows[0]["loss"] < np.log(2) + 0.02
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["preference_accuracy"] > 0.8
    for row in reevaluate(path):
        assert row.value == pytest.approx(row.recorded)
    union = evaluate_run(path, True, None)["union"]
    assert union["examples"] == 8
    assert min(union["preference_accuracy"].values()) > 0.8


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["task.beta=0"], "beta is 0: expected more than 0"),
        (["+task.packed=true"], "expected text=null, messages=null and packed=false"),
        (["+task.text=prompt"], "two answers to a prompt are compared"),
        (["task.measured=[perplexity]"], "expected preference_accuracy, loss"),
        (["task.measured=[loss,loss]"], "each at most once"),
        (["cut=u_shape"], "no single part can be compared"),
        (["task.rejected=answers"], "has no column 'answers'"),
    ],
)
def test_what_cannot_be_is_refused(words, changed, told):
    with pytest.raises((ConfigError, DataError), match=told):
        load([*words, *changed]).task.describe()


def test_an_example_has_the_tokens_of_both_answers(bench):
    train = bench.data("0").train
    for at in range(len(train)):
        chosen, rejected = (train.features[f"{kind}input_ids"][at] for kind in ("", "rejected_"))
        assert train.lengths[at] == len(chosen) + len(rejected)
        prompt = np.flatnonzero(train.features["labels"][at] != -100)[0]
        assert np.array_equal(chosen[:prompt], rejected[:prompt])
    batch = bench.task.collate(train, np.array([3, 1]))
    alone = bench.task.collate(train.at(np.array([1])), np.array([0]))
    assert batch["input_ids"].shape[0] == 4
    assert torch.equal(batch["reference"][1], alone["reference"][0])
