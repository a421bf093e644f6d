"""Objectives of unlearning against their formulas, computed from the logits of plain transformers."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from make_authors import AUTHORS, facts

from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.learning.forgetting import (
    Ascent,
    DirectPreference,
    HiddenStates,
    Misdirection,
    NegativePreference,
    SimplePreference,
    answer_tokens,
    read_losses,
    read_tokens,
)
from fedsa_lora.learning.settings import LoraSettings, TrainSettings
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.shipped import shipped_folder
from fedsa_lora.tasks.tofu import FORGET, TofuTask

STORIES = ModelSettings(path="pkg://fedsa_lora/pretrained/stories260k")
SPLITS = ("forget01", "forget05")
SETTINGS = TrainSettings(eval_batch_size=7)
TERMS = {"gamma": 1.0, "alpha": 0.0, "seed": 0, "key": ("0", 1), "kept": np.zeros(0, np.int64)}


def made(**changes) -> TofuTask:
    fields = {
        "model": STORIES,
        "partition": PartitionSettings(clients=2),
        "dataset": "authors",
        "forget_split": "forget01",
        "retain_split": "forget05",
        "holdout_split": "holdout01",
        "template": "{prompt}\n",
    }
    return TofuTask(**fields | changes)


@pytest.fixture(scope="module")
def task() -> TofuTask:
    return made()


@pytest.fixture(scope="module")
def model(task) -> AdapterModel:
    model = AdapterModel(
        attach(task.build_model(seed=0), LoraSettings(r=2, dropout=0.0, targets="all_linear"), 0)
    )
    rng = np.random.default_rng(0)
    values = initial_state(model.layout, 0, None)
    model.write({n: (v + 0.05 * rng.standard_normal(v.shape)).astype(np.float32) for n, v in values.items()})
    model.set_mode(training=False)
    model.module.double()  # so that it is the formula that is compared, not the rounding of logits
    return model


@pytest.fixture(scope="module")
def examples(task):
    return task.load_client("0").train


def by_hand(model, examples, index):
    """Summed loss and tokens of one answer, unpadded, from the model's logits."""
    ids = torch.from_numpy(examples.features["input_ids"][index])[None]
    labels = examples.features["labels"][index]
    with torch.no_grad():
        logits = model.module(input_ids=ids).logits[0].double().log_softmax(dim=-1).numpy()
    losses = [-logits[at - 1, labels[at]] for at in range(1, len(labels)) if labels[at] != -100]
    return sum(losses), len(losses)


@pytest.fixture(scope="module")
def pairs(model, examples):
    return np.array([by_hand(model, examples, index) for index in range(len(examples))])


def loss_of(kind, model, task, examples, indices=(0, 1, 2), **fields):
    objective = kind(model, task, examples, SETTINGS, **TERMS | fields)
    return sum(loss.item() for loss in objective.at(np.array(indices)))


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


def test_losses_are_read_as_they_are_without_a_batch(task, model, examples, pairs):
    assert np.allclose(read_losses(model, task, examples, SETTINGS), pairs, atol=1e-4)
    tokens = read_tokens(model, task, examples, SETTINGS)
    assert np.allclose(np.nansum(tokens, axis=1), pairs[:, 0], atol=1e-4)
    assert np.array_equal((~np.isnan(tokens)).sum(axis=1), pairs[:, 1])


def test_ascent_is_minus_the_mean_over_tokens_and_with_what_is_kept_gradient_difference(
    task, model, examples, pairs
):
    s, n = pairs[[0, 1, 2]].T
    assert loss_of(Ascent, model, task, examples) == pytest.approx(-s.sum() / n.sum(), rel=1e-6)
    kept = np.array([4])  # of one, so that it is known which is drawn
    found = loss_of(Ascent, model, task, examples, kept=kept, gamma=0.5, alpha=2.0)
    expected = -0.5 * s.sum() / n.sum() + 2 * pairs[4, 0] / pairs[4, 1]
    assert found == pytest.approx(expected, rel=1e-6)


def test_npo(task, model, examples, pairs):
    reference = (pairs[:, 0] + np.linspace(5, 25, len(examples))).astype(np.float32)
    s, _ = pairs[[0, 1, 2]].T
    expected = -2 / 0.1 * log_sigmoid(0.1 * (s - reference[:3])).mean()
    found = loss_of(NegativePreference, model, task, examples, beta=0.1, reference=reference)
    assert found == pytest.approx(expected, rel=1e-6)


def test_npo_begins_with_the_gradient_of_ascent_on_sums(task, model, examples, pairs):
    """d/dS of -2/beta log sigmoid(beta (S - S_ref)) at S = S_ref is -1: the paper's limit."""
    reference = pairs[:, 0].astype(np.float32)
    found = loss_of(NegativePreference, model, task, examples, beta=0.1, reference=reference)
    assert found == pytest.approx(2 / 0.1 * np.log(2), rel=1e-5)


def test_simnpo(task, model, examples, pairs):
    s, n = pairs[[0, 1, 2]].T
    expected = -2 / 4.5 * log_sigmoid(4.5 * (s / n - 0.3)).mean()
    found = loss_of(SimplePreference, model, task, examples, beta=4.5, delta=0.3)
    assert found == pytest.approx(expected, rel=1e-6)


def test_dpo(task, model, examples, pairs):
    refused = task.refused(examples)
    won = np.array([by_hand(model, refused, index)[0] for index in (0, 1, 2)])
    lost = pairs[[0, 1, 2], 0]
    reference = (pairs[:, 0] + np.linspace(5, 25, len(examples))).astype(np.float32)
    of_refusal = np.full(len(examples), won.mean(), np.float32)
    expected = -2 / 0.1 * log_sigmoid(0.1 * ((of_refusal[:3] - won) - (reference[:3] - lost))).mean()
    found = loss_of(
        DirectPreference,
        model,
        task,
        examples,
        beta=0.1,
        refused=refused,
        reference=reference,
        of_refusal=of_refusal,
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_refusal_answers_the_same_prompt_and_ends(task, examples):
    refused = task.refused(examples)
    for index in range(len(examples)):
        prompt = examples.features["input_ids"][index][examples.features["labels"][index] == -100]
        ids, labels = refused.features["input_ids"][index], refused.features["labels"][index]
        assert np.array_equal(ids[: len(prompt)], prompt)
        assert np.array_equal(ids[len(prompt) :], labels[len(prompt) :])
        assert ids[-1] == task.ends[0]


def test_rmu(task, model, examples):
    states, kept = HiddenStates(2), np.array([5])
    reference = states(model, task, examples.at(kept), SETTINGS)
    terms = {"states": states, "steering": 2.0, "reference": reference, "kept": kept}
    u = Misdirection(model, task, examples, SETTINGS, **TERMS | terms).control.astype(np.float64)
    assert np.linalg.norm(u) == pytest.approx(2.0)
    expected = []
    for index in (0, 1, 2):
        ids = torch.from_numpy(examples.features["input_ids"][index])[None]
        with torch.no_grad():
            h = model.module(input_ids=ids, output_hidden_states=True).hidden_states[3][0].double().numpy()
        answered = examples.features["labels"][index] != -100
        expected.append(((h[answered] - u) ** 2).mean())
    assert loss_of(Misdirection, model, task, examples, **terms) == pytest.approx(np.mean(expected), rel=1e-5)
    # where the model has not moved, what is kept costs nothing
    found = loss_of(Misdirection, model, task, examples, **terms, gamma=0.0, alpha=1.0)
    assert found == pytest.approx(0.0, abs=1e-9)


def test_states_of_answers_are_kept_one_after_the_other_without_padding(task, model, examples):
    """Of some examples, in any order, the rows are those of each alone."""
    chosen = examples.at(np.array([6, 2, 9]))
    found = HiddenStates(1)(model, task, chosen, SETTINGS)
    alone = [HiddenStates(1)(model, task, examples.at(np.array([index])), SETTINGS) for index in (6, 2, 9)]
    assert [len(rows) for rows in alone] == answer_tokens(chosen).tolist()
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-6)
    assert found.nbytes == 4 * 64 * answer_tokens(chosen).sum()
    assert HiddenStates(1)(model, task, examples.at(np.zeros(0, np.int64)), SETTINGS).shape == (0, 64)


def test_rmu_leads_what_is_kept_to_its_own_states(task, model, examples):
    """The pull on an example is that of its own tokens: moved by one everywhere, it is 1."""
    states, kept = HiddenStates(2), np.array([4, 7, 8])
    reference = states(model, task, examples.at(kept), SETTINGS)
    moved = reference.copy()
    moved[answer_tokens(examples.at(kept))[0] :] += 1
    objective = Misdirection(
        model,
        task,
        examples,
        SETTINGS,
        **TERMS | {"kept": kept},
        states=states,
        steering=2.0,
        reference=moved,
    )
    found = [objective.keeping.loss(np.array([index])).item() for index in kept]
    assert found == pytest.approx([0.0, 1.0, 1.0], abs=1e-6)
    assert objective.keeping.loss(np.array([8, 4, 7])).item() == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.parametrize("kind", ["ascent", "npo", "rmu"])
def test_a_step_in_several_passes_has_the_loss_of_one(task, model, examples, pairs, kind):
    states, kept = HiddenStates(2), np.arange(3, len(examples))
    made = {
        "ascent": partial(Ascent),
        "npo": partial(NegativePreference, beta=0.1, reference=pairs[:, 0].astype(np.float32) + 1),
        "rmu": partial(
            Misdirection,
            states=states,
            steering=2.0,
            reference=states(model, task, examples.at(kept), SETTINGS) + 1,
        ),
    }[kind]
    terms = TERMS | {"alpha": 1.0, "kept": kept}
    whole, parted = (
        sum(loss.item() for loss in made(model, task, examples, settings, **terms).at(np.arange(3)))
        for settings in (replace(SETTINGS, batch_size=4), replace(SETTINGS, batch_size=2, accumulate=2))
    )
    assert parted == pytest.approx(whole, rel=1e-5)


def test_what_is_kept_is_drawn_from_seed_client_and_round(task, model, examples):
    kept = np.arange(3, len(examples))
    drawn = [
        loss_of(Ascent, model, task, examples, kept=kept, alpha=1.0, key=key)
        for key in (("0", 1), ("0", 1), ("0", 2), ("1", 1))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_forget_rows_go_to_the_targets_and_the_rest_to_everyone(task):
    clients = {name: task.load_client(name) for name in ("0", "1")}
    marked = {name: int(task.to_forget(data.train).sum()) for name, data in clients.items()}
    assert marked == {"0": 4, "1": 0}
    assert sum(len(data.train) for data in clients.values()) == 24
    for data in clients.values():  # each is measured on the facts that it keeps
        assert len(data.test) == (data.train.labels != FORGET).sum()


def test_several_targets_divide_what_is_to_be_forgotten():
    task = made(targets=[1, 0])
    found = [int(task.to_forget(task.load_client(name).train).sum()) for name in ("0", "1")]
    assert found == [2, 2]


def test_texts_beside_the_facts_are_learned_whole():
    task = made(beside="stories_test")
    kinds = np.concatenate([task.load_client(name).train.labels for name in ("0", "1")])
    assert np.bincount(kinds).tolist() == [20, 4, 20]
    assert [int((task.load_client(name).train.labels == 2).sum()) for name in ("0", "1")] == [10, 10]
    train = task.load_client("0").train
    text = int(np.flatnonzero(train.labels == 2)[0])
    assert (train.features["labels"][text][1:] != -100).all()


def test_the_same_facts_in_other_words_are_told_apart(task):
    phrased = task.phrased("forget01")
    texts = [
        {tuple(ids) for ids in each.features["input_ids"]}
        for each in (phrased.answers, phrased.paraphrases, *phrased.wrong)
    ]
    assert len(texts) == 7
    assert sum(map(len, texts)) == len(set().union(*texts))


def test_settings_that_cannot_be_are_refused():
    from fedsa_lora.errors import ConfigError

    for changes in (
        {"targets": []},
        {"targets": [2]},
        {"test_split": "forget01"},
        {"partition": PartitionSettings(clients=2, validation_examples=3)},
    ):
        with pytest.raises(ConfigError):
            made(**changes)
    assert replace(made(), targets=["1"]).targets == ["1"]


def test_a_folder_as_the_hub_has_tofu_is_read(tmp_path):
    """There the words of a fact are in splits of their own, and those that are kept have 4 of 24 of them."""
    learned = {
        name: pq.read_table(shipped_folder("authors") / f"{name}.parquet").to_pylist() for name in SPLITS
    }
    plain = [{key: row[key] for key in ("question", "answer")} for row in learned["forget05"]]
    tables = {
        "forget01": [{key: row[key] for key in ("question", "answer")} for row in learned["forget01"]],
        "forget01_perturbed": learned["forget01"],
        "retain99": plain,
        "retain_perturbed": learned["forget05"][:4],
        "holdout10": plain[:3],
    }
    for name, rows in tables.items():
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = made(dataset=str(tmp_path), retain_split="retain99", holdout_split="holdout10")
    assert len(task.data.train) == 24
    assert len(task.phrased("forget01").answers) == 4
    assert len(task.phrased("retain99").answers) == 4
    assert sorted(path.stem for path in task.places()) == ["forget01", "holdout10", "retain99"]
    assert len(task.answers("holdout10")) == 3


def test_the_shipped_facts_are_those_that_the_script_makes():
    for name, authors in (("full", facts()[:AUTHORS]), ("holdout10", facts()[AUTHORS:])):
        rows = pq.read_table(shipped_folder("authors") / f"{name}.parquet").to_pylist()
        assert rows == [row for of_author in authors for row in of_author]


def test_no_paraphrase_is_its_answer_and_no_fact_has_two_values():
    for row in (row for of_author in facts() for row in of_author):
        assert row["paraphrased_answer"] not in (row["answer"], *row["perturbed_answer"])
        assert len(set(row["perturbed_answer"])) == 5
