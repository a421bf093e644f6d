"""Whole runs with each personalisation method: what is common stays as it is without one, and what a client
keeps beside it is its own."""

import numpy as np
import pytest
from test_methods import BRIEF, everything, rows, states

from fedsa_lora.config import load
from fedsa_lora.errors import ConfigError
from fedsa_lora.personal import PERSONAL, beside
from fedsa_lora.runs.reevaluate import reevaluate

METHODS = ["finetune", "reptile", "perfedavg", "ditto", "pfedme", "distillation"]
LIVELY = ("personalisation.eta=0.5", "personalisation.weight=1", "personalisation.inner=2")


@pytest.fixture(scope="module")
def run(run_smoke):
    known = {}

    def made(*words):
        if words not in known:
            known[words] = run_smoke(*BRIEF, *words)
        return known[words]

    return made


def personalised(run, method, *words):
    return run(f"personalisation={method}", *(LIVELY if method == "pfedme" else ()), *words)


def own_models(path):
    return {client: beside(state) for client, state in states(path).items()}


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", "personalisation.steps=2"),
        ("reptile", "personalisation.epsilon=1", "personalisation.steps=0"),
        ("perfedavg", "personalisation.alpha=0", "personalisation.steps=0"),
        ("ditto",),
        ("distillation",),
    ],
    ids=" ".join,
)
def test_what_is_common_has_the_bits_of_a_run_without_it(run, words):
    found, plain = everything(personalised(run, *words)), everything(run())
    for owner, tensors in plain.items():
        for name, array in tensors.items():
            assert np.array_equal(found[owner][name], array), (owner, name)


@pytest.mark.parametrize("method", ["ditto", "distillation"])
@pytest.mark.parametrize("split", ["share_a", "share_ab"])
def test_a_personal_model_without_its_term_is_that_of_training_alone(run, method, split):
    alone = states(run("split=local_only"))
    found = own_models(personalised(run, method, "personalisation.weight=0", f"split={split}"))
    for client, state in alone.items():
        assert found[client].keys() == state.tensors.keys()
        for name, array in state.tensors.items():
            assert np.array_equal(found[client][name], array), (client, name)


@pytest.mark.parametrize("method", ["ditto", "pfedme", "distillation"])
def test_a_personal_model_is_neither_the_common_one_nor_that_of_training_alone(run, method):
    models = own_models(personalised(run, method))
    alone, common = states(run("split=local_only")), everything(personalised(run, method))["server"]
    for client, own in models.items():
        assert all(not np.array_equal(own[n], alone[client].tensors[n]) for n in own if "lora_B" in n)
        assert all(not np.array_equal(own[name], value) for name, value in common.items())
    assert len({own[min(own)].tobytes() for own in models.values()}) == len(models)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("words", [(), ("split=share_ab", "head=shared", "codec=topk")], ids=["A", "all"])
def test_each_method_runs_and_its_evaluation_can_be_repeated(run, method, words):
    path = personalised(run, method, *words, "evaluation.before=true")
    last = [row for row in rows(path, "clients") if row["phase"] == "fit" and row["round"] == 3]
    assert all(0 <= row["accuracy_before"] <= 1 for row in last)
    for row in reevaluate(path):
        assert row.accuracy == row.recorded
    searched = [row for log in path.glob("clients/*/egress.jsonl") for row in _lines(log)]
    assert searched
    assert not any(row["matches"] for row in searched)


def test_what_is_private_of_a_personal_model_is_searched_for_in_what_leaves(run):
    for state in states(personalised(run, "ditto")).values():
        assert any(name.startswith(PERSONAL) and "lora_B" in name for name in state.tensors)
        assert not any(name.startswith(PERSONAL) and "lora_A" in name for name in state.tensors)


def test_a_client_that_never_took_part_is_measured_with_the_common_model(run):
    path = personalised(run, "ditto", "strategy.fraction_fit=0.4", "strategy.min_fit_clients=1")
    assert len(states(path)) < 3
    last = [row for row in rows(path, "clients") if row["phase"] == "evaluate"]
    assert {row["client"] for row in last} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["personalisation=ditto", "split=share_ab", "strategy=fedex"], "Ditto keeps a model beside"),
        (["personalisation=pfedme", "strategy=fedprox"], "PFedMe has a proximal term of its own"),
        (["personalisation=pfedme", "split=importance", "personalisation.inner=1"], "inner=1: importance"),
        (["personalisation=reptile", "personalisation.epsilon=2"], "personalisation: epsilon=2.0: expected"),
        (["personalisation=dito"], "did you mean 'ditto'"),
        (["personalisation=ditto", "personalisation.lambda=2"], "personalisation.lambda"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_does_not_go_together_is_told_at_start(words, told):
    with pytest.raises(ConfigError, match=told):
        load(["experiment=smoke", *words])


def _lines(path):
    return rows(path.parent, path.stem)
