"""Whole runs with each personalisation method: what is common stays as it is without one, and what a client
keeps beside it is its own."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from test_methods import BRIEF, checkpoint, everything, fits, rows, states

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.analysis.reevaluate import reevaluate
from fedsa_lora.client import build
from fedsa_lora.client.model import ClientModel
from fedsa_lora.client.personal import PERSONAL, beside, others
from fedsa_lora.config.compose import load, read_config
from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.exchange.witness import matches, private_values
from fedsa_lora.learning.job import complete
from fedsa_lora.learning.personalisation import Personalisation
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.server.build import build_strategy, skeleton
from strategies.round.ledger import Unwritten

SOME = ("strategy.fraction_fit=0.7", "strategy.min_fit_clients=2")
EXPERTS = ("split=share_ab", "personalisation=experts")
METHODS = ["finetune", "reptile", "perfedavg", "ditto", "pfedme", "distillation"]
LIVELY = ("personalisation.eta=0.5", "personalisation.weight=1", "personalisation.inner=2")


@pytest.fixture(scope="module")
def run(run_once):
    return partial(run_once, *BRIEF)


def personalised(run, method, *words):
    return run(f"personalisation={method}", *(LIVELY if method == "pfedme" else ()), *words)


def exporter(path):
    config = read_config(path)
    return Exporter(config, RunDirectory(path, config), skeleton(config))


def own_models(path):
    return {client: beside(state) for client, state in states(path).items()}


@pytest.mark.sampled(2)
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


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", ["ditto", "distillation"])
@pytest.mark.parametrize("split", ["share_a", pytest.param("share_ab", marks=pytest.mark.slow)])
def test_a_personal_model_without_its_term_is_that_of_training_alone(run, method, split):
    alone = states(run("split=local_only"))
    found = own_models(personalised(run, method, "personalisation.weight=0", f"split={split}"))
    for client, state in alone.items():
        assert found[client].keys() == state.tensors.keys()
        for name, array in state.tensors.items():
            assert np.array_equal(found[client][name], array), (client, name)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", ["ditto", "pfedme", "distillation"])
def test_a_personal_model_is_neither_the_common_one_nor_that_of_training_alone(run, method):
    models = own_models(personalised(run, method))
    alone, common = states(run("split=local_only")), everything(personalised(run, method))["server"]
    for client, own in models.items():
        assert all(not np.array_equal(own[n], alone[client].tensors[n]) for n in own if "lora_B" in n)
        assert all(not np.array_equal(own[name], value) for name, value in common.items())
    assert len({own[min(own)].tobytes() for own in models.values()}) == len(models)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "words",
    [
        pytest.param((), id="A", marks=pytest.mark.slow),
        pytest.param(("split=share_ab", "head=shared", "codec=topk"), id="all"),
    ],
)
def test_each_method_runs_and_its_evaluation_can_be_repeated(run, method, words):
    path = personalised(run, method, *words, "evaluation.before=true")
    last = [row for row in rows(path, "clients") if row["phase"] == "fit" and row["round"] == 3]
    assert all(0 <= row["accuracy_before"] <= 1 for row in last)
    for row in reevaluate(path):
        assert row.value == row.recorded
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


@pytest.fixture(scope="module", params=[(), SOME], ids=["all", "two of three"])
def experts(run, request):
    return run(*EXPERTS, "evaluation.before=true", "run.keep_messages=true", *request.param)


def parts_of(path, round_=3):
    """A and B of each client that took part in a round as its own store has them, and its examples."""
    found = {}
    for row in (row for row in fits(path) if row["round"] == round_):
        own = beside(build.store(read_config(path), row["client"]).load(round_))
        found[row["client"]] = {n: a for n, a in own.items() if "lora_" in n}, row["examples"]
    return found


def mean_of(parts):
    total = sum(examples for _, examples in parts)
    return {n: sum(own[n] * (examples / total) for own, examples in parts) for n in parts[0][0]}


def test_what_is_common_is_the_weighted_mean_of_the_clients_own_experts(experts):
    expected, found = mean_of([*parts_of(experts).values()]), everything(experts)["server"]
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6)


def test_what_a_client_mixes_in_is_the_weighted_mean_of_the_other_clients_experts(experts):
    parts, common = parts_of(experts), everything(experts)["server"]
    assert len({examples for _, examples in parts.values()}) == len(parts) > 1
    for client in "012":
        model = exporter(experts).own_model(client)
        rest = mean_of([part for name, part in parts.items() if name != client])
        for name, value in rest.items():
            np.testing.assert_allclose(model.others[name], value, rtol=0, atol=1e-5)
            assert np.array_equal(model.others[name], common[name]) == (client not in parts)


def test_a_round_is_trained_with_the_mean_of_the_others_that_it_began_with(experts):
    """The last round of each client once more, by its method alone, from what was stored before it."""
    config, parts, common = read_config(experts), parts_of(experts, 2), checkpoint(experts, 2).tensors
    bench = build.workbench(config)
    for client in parts_of(experts, 3):
        store = build.store(config, client)
        state = store.load(2)
        share = parts[client][1] / sum(n for _, n in parts.values()) if client in parts else 0.0
        kept = bench.initial if state is None else state.tensors
        values, names = {**kept, **common}, frozenset(bench.model.layout.names)
        terms = {"anchor": common, "others": others(common, state, share, 2)}
        local = ClientModel(client, bench, store).local(3, names, values, **terms)
        ((_, found),) = complete([bench.personalisation.fit(local, beside(state))], bench.trainer)
        recorded = beside(store.load(3))
        assert found.keys() == recorded.keys()
        assert all(np.array_equal(found[name], value) for name, value in recorded.items())


def test_the_evaluation_of_experts_can_be_repeated_to_the_last_bit(experts):
    assert all(row.value == row.recorded for row in reevaluate(experts))
    config = read_config(experts)
    recorded = {row["client"]: row["loss"] for row in rows(experts, "clients") if row["phase"] == "evaluate"}
    bench, made = build.workbench(config), exporter(experts)
    for client in "012":
        model, other = made.own_model(client), made.own_model(str((int(client) + 1) % 3))
        served = ClientModel(client, bench, build.store(config, client))
        assert served.measure(served.own(3, model, {}))["loss"] == recorded[client]
        mixed = replace(model, others=other.others)
        assert served.measure(served.own(3, mixed, {}))["loss"] != recorded[client]


def test_no_gate_is_in_any_message(experts):
    for client, state in states(experts).items():
        store = build.store(read_config(experts), client)
        kept = [beside(store.load(round_)) for round_ in store.rounds()]
        gates = [{name: own[name] for name in own if ".gate." in name} for own in kept]
        assert all(f"{PERSONAL}{name}" in state.tensors for name in gates[-1])
        assert all(np.abs(gate).max() > 0 for name, gate in gates[-1].items() if name.endswith("weight"))
        private = private_values(gates)
        messages = [path.read_bytes() for path in experts.glob("clients/*/messages/*")]
        assert len(messages) == len(fits(experts)) + 2 * 3  # each also says who it is, and is evaluated
        assert matches(b"".join(gate.tobytes() for gate in gates[-1].values()), private)
        assert not any(matches(message, private) for message in messages)


def test_a_client_that_never_took_part_has_the_common_model_and_nothing_to_mix_it_with(run):
    path = run(*EXPERTS, "strategy.fraction_fit=0.4", "strategy.min_fit_clients=1")
    absent = {"0", "1", "2"} - states(path).keys()
    config, common = read_config(path), everything(path)["server"]
    plain = replace(build.workbench(config), personalisation=Personalisation())
    recorded = {row["client"]: row["loss"] for row in rows(path, "clients") if row["phase"] == "evaluate"}
    assert absent
    for client in absent:
        model = exporter(path).own_model(client)
        assert not model.beside
        assert all(np.array_equal(model.others[name], value) for name, value in common.items())
        served = ClientModel(client, plain, build.store(config, client))
        assert served.measure(served.own(3, model, {}))["loss"] == recorded[client]


def test_experts_refuse_an_adapter_they_cannot_mix_before_anything_runs():
    config = load(["experiment=smoke", *EXPERTS, "lora=dora"])
    with pytest.raises(ModelError, match="expected plain LoRA on a linear layer"):
        build_strategy(config, skeleton(config), Unwritten())


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["personalisation=experts"], "Experts mixes whole adapters, A with B; expected split=share_ab"),
        ([*EXPERTS, "strategy=fedavgm"], "FedAvgM does not return it; expected strategy=fedavg"),
        ([*EXPERTS, "strategy=krum"], "Krum does not return it"),
        ([*EXPERTS, "strategy=fedex"], "Experts keeps a second model"),
        ([*EXPERTS, "codec=topk"], "expected codec=dense"),
        ([*EXPERTS, "downlink=int8"], "expected downlink=whole or dense"),
        ([*EXPERTS, "strategy=flora", "federation.ranks=[2, 4]"], "Experts keeps a second model"),
        (["personalisation=ditto", "split=share_ab", "strategy=fedex"], "Ditto keeps a second model"),
        (["personalisation=experts", "split=share_ab", "clusters=updates"], "expected clusters=none"),
        (["personalisation=experts", "split=share_ab", "federation.weights=uniform"], "weights=examples"),
        (["personalisation=pfedme", "strategy=fedprox"], "PFedMe has its own proximal term"),
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
