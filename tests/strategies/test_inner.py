"""The inner strategy of a config: what it is made of, what it can do, and what keeps it from being made."""

import math

import numpy as np
import pytest
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg

from fedsa_lora.config.compose import load, to_yaml
from fedsa_lora.config.validation import from_resolved
from fedsa_lora.errors import ConfigError
from strategies.rules.abilities import layers
from strategies.rules.inner import Inner, bind_inner

FLOWER = "flwr.server.strategy."
CLIPPING = FLOWER + "DifferentialPrivacyServerSideFixedClipping"
ONE = {"_target_": FLOWER + "FedAvg", "fraction_fit": 0.5, "min_fit_clients": 3}
AROUND = {"_target_": CLIPPING, "noise_multiplier": 0.0, "clipping_norm": 2.0, "num_sampled_clients": 4}
PLUGIN = """
from flwr.server.strategy import FedAvg, FedMedian

class Averaging(FedAvg):
    pass

class Overriding(FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        return super().aggregate_fit(server_round, results, failures)

class Scaling(Overriding):
    linear = True

class Evaluating(FedAvg):
    def aggregate_evaluate(self, server_round, results, failures):
        return 0.0, {}
"""


def bound(node) -> Inner:
    faults: list[str] = []
    inner = bind_inner(node, "strategy", faults)
    assert faults == []
    assert inner is not None
    return inner


def faults_of(node) -> list[str]:
    faults: list[str] = []
    assert bind_inner(node, "strategy", faults) is None
    return faults


def clash(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(["experiment=smoke", *words])
    return str(caught.value)


def test_what_a_config_names_is_built_from_the_inside_out_and_the_innermost_gets_the_start():
    start = ndarrays_to_parameters([np.ones(3, np.float32)])
    adam = {"_target_": FLOWER + "FedAdam", "eta": 0.5}
    inner = bound({**AROUND, "strategy": {**AROUND, "clipping_norm": 1.0, "strategy": adam}})
    built = inner.build(initial_parameters=start, seed=3)
    kinds = [DifferentialPrivacyServerSideFixedClipping] * 2 + [FedAdam]
    assert [type(layer) for layer in layers(built)] == kinds == [layer.kind for layer in inner.layers]
    outer, middle, innermost = layers(built)
    assert (outer.clipping_norm, middle.clipping_norm, innermost.eta) == (2.0, 1.0, 0.5)
    assert innermost.initial_parameters == start
    assert inner.name == f"{kinds[0].__name__}({kinds[0].__name__}(FedAdam))"


def test_how_many_are_sampled_is_the_word_of_the_innermost():
    assert bound({**AROUND, "strategy": ONE}).sampled(10) == bound(ONE).sampled(10) == 5
    assert bound({**AROUND, "strategy": ONE}).sampled(4) == 3


def test_a_strategy_around_another_can_what_both_can():
    assert bound(ONE).can("linear")
    assert not bound({**AROUND, "strategy": ONE}).can("linear")
    prox = {"_target_": FLOWER + "FedProx", "proximal_mu": 0.1}
    assert bound({**AROUND, "strategy": prox}).proximal
    assert not bound({**AROUND, "strategy": ONE}).proximal


@pytest.mark.parametrize(
    ("wrapped", "said"),
    [
        (None, "strategy.strategy: missing"),
        (3, "strategy.strategy: expected a _target_"),
        ({}, "strategy.strategy: expected a _target_"),
        ({"_target_": "os.system"}, "strategy.strategy._target_: 'os.system' is not allowed"),
        (
            {"_target_": "strategies.FedSA"},
            "strategy.strategy._target_: FedSA is not a strategy that FedSA can",
        ),
        ({"_target_": FLOWER + "FedAvgg"}, "no such class (did you mean 'FedAvg'?)"),
        ({**ONE, "fraction_fitt": 1}, "strategy.strategy.fraction_fitt: no such argument of FedAvg"),
        ({**ONE, "fraction_fit": "all"}, "strategy.strategy.fraction_fit: expected float, got 'all'"),
        ({**AROUND, "clipping_norm": -1.0, "strategy": ONE}, "strategy.strategy: The clipping norm"),
        ({**AROUND, "strategy": {"_target_": "os.x"}}, "strategy.strategy.strategy._target_: 'os.x'"),
    ],
)
def test_every_level_is_checked_and_named(wrapped, said):
    node = AROUND if wrapped is None else {**AROUND, "strategy": wrapped}
    (fault,) = faults_of(node)
    assert said in fault


def test_faults_of_all_levels_are_listed_at_once():
    found = faults_of({**AROUND, "noise": 1, "strategy": {**ONE, "fraction_fit": "all"}})
    assert len(found) == 2
    (fault,) = [fault for fault in found if "strategy.noise: no such argument" in fault]
    assert fault.endswith("; leave it out by ~strategy.noise, or give strategy as a whole")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_argument_that_is_not_finite_is_a_fault_with_its_key(value):
    (found,) = faults_of({**AROUND, "clipping_norm": value, "strategy": ONE})
    assert found == f"strategy.clipping_norm: {value!r} is out of range; expected a finite number"


def test_a_nested_strategy_composes_shows_in_the_plan_and_reads_back_equal():
    words = ["experiment=smoke", "strategy=dp_fixed_clipping", "strategy.noise_multiplier=0"]
    config = load(
        [*words, f"++strategy.strategy._target_={FLOWER}FedProx", "++strategy.strategy.proximal_mu=1"]
    )
    assert config.strategy.arguments["num_sampled_clients"] == config.federation.clients
    assert config.describe()["server rule"] == "DifferentialPrivacyServerSideFixedClipping(FedProx)"
    assert from_resolved(config.resolved) == config
    assert CLIPPING in to_yaml(config)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected federation.weights=uniform"),
        ((), "expected federation.min_results=1"),
        (("strategy.num_sampled_clients=9",), "num_sampled_clients=9: 4 are sampled"),
        (("split=importance",), "split: Importance chooses by what clients send"),
        (
            (f"++strategy.strategy._target_={FLOWER}FedAdam",),
            "for a mean, and FedAdam does not take the mean",
        ),
        (("bounds=median",), "one client would move the bound of others"),
        (("head=shared",), "expected head.count_weighted=false"),
        (
            ("clusters=updates",),
            "clusters: DifferentialPrivacyServerSideFixedClipping(FedAvg) cannot aggregate groups",
        ),
        (
            (f"++strategy.strategy._target_={FLOWER}Krum", "++strategy.strategy.num_malicious_clients=1"),
            "Krum needs 2 f + 3 = 5 clients a round, 4 are sampled",
        ),
        (("++strategy.strategy._target_=strategies.FedEx", "split=share_ab"), "FedEx combines A with B"),
        (
            (f"++strategy._target_={FLOWER}DifferentialPrivacyClientSideFixedClipping",),
            "adds noise to what clients clip, and these clients do not",
        ),
    ],
)
def test_what_would_make_the_noise_too_small_or_of_no_use_is_refused(words, said):
    assert said in clash("strategy=dp_fixed_clipping", *words)


def test_a_subclass_in_a_plug_in_is_what_it_is(tmp_path, monkeypatch):
    (tmp_path / "my_strategies.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "my_strategies")
    words = ["experiment=smoke", "head=shared"]
    config = load([*words, "strategy._target_=my_strategies.Averaging"])
    assert config.head.counted
    assert config.strategy.can("linear") is config.strategy.can("averages") is True
    assert issubclass(config.strategy.kind, FedAvg)
    assert load([*words, "strategy._target_=my_strategies.Scaling"]).strategy.can("linear")
    said = clash("head=shared", "strategy._target_=my_strategies.Overriding")
    assert "Overriding may compare clients' heads" in said
    assert "or linear = True in Overriding if it uses only the weighted mean" in said
    rule = load([*words[:1], "strategy._target_=my_strategies.Evaluating"]).describe()["server rule"]
    assert rule == "Evaluating; not called, as FedSA evaluates: Evaluating.aggregate_evaluate"


def test_a_wrapper_in_the_place_of_an_options_class_hands_the_keys_of_the_option_on():
    words = [
        "experiment=smoke", f"strategy._target_={CLIPPING}",
        f"+strategy.strategy={{_target_: {FLOWER}FedAvg}}",
        "+strategy.noise_multiplier=0", "+strategy.clipping_norm=1", "+strategy.num_sampled_clients=2",
        "federation.weights=uniform", "federation.min_results=1", "strategy.fraction_fit=0.5",
    ]  # fmt: skip
    config = load(words)
    inner = config.strategy.arguments["strategy"]
    assert config.strategy.arguments.keys() == {
        "strategy", "noise_multiplier", "clipping_norm", "num_sampled_clients"
    }  # fmt: skip
    assert inner.arguments["fraction_fit"] == 0.5
    assert config.strategy.sampled(4) == 2
    assert from_resolved(config.resolved) == config
    with pytest.raises(ConfigError, match=r"strategy\.eta: no such argument of DifferentialPrivacy"):
        load([*words, "+strategy.eta=0.1"])
