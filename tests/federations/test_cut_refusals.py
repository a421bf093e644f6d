"""What cannot be cut is refused before a run, with a way out."""

import pytest
from cut_cases import GPT2, NO_DEPTH, OPT, TINY

from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError, ModelError


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("cut.bottom=4",), "bottom below top"),
        (("task.packed=true",), "task.packed=false"),
        (("task.measured=[rouge_l]", "task.text=null"), "no single part can write an answer"),
        (("personalisation=ditto",), "personalisation=none"),
        (("evaluation.local_only=true",), "evaluation.local_only=false"),
        (("train.accumulate=2",), "train.accumulate=1"),
        (("train.steps=null", "train.epochs=1"), "expected train.steps"),
        (("federation.clients_per_node=3",), "clients_per_node=1"),
        (("lora=dora",), "lora.variant=lora"),
        (("split=importance",), "neither adapts"),
        (("strategy=fedprox",), "strategy=fedavg"),
        (("split=share_ab", "strategy=flora"), "another that averages"),
        (("split=local_only",), "shares nothing"),
        (("split=soft",), "neither adapts nor mixes"),
        (("lora.layer_ranks=[2,2,4,4,8]",), r"lora.layer_ranks=null.*\{layers\\.0\\..\*: 4\}"),
        (("cut.micro_batches=8",), "no more parts"),
        (("cut.top=5",), "has 5 blocks.*expected cut.top=2 to 4"),
        (("cut.top=9", "train.accumulate=2"), "(?s)has 5 blocks.*train.accumulate=1"),
        (("cut.bottom=4", "cut.top=5"), "expected cut.bottom=1 to 3, and cut.top above it and below 5"),
        ((*GPT2[:3], "cut.top=5", GPT2[3]), "has 5 blocks"),
        (("+model.config.num_hidden_layers=2",), "has 2 blocks.*expected one of at least 3, or cut=none"),
        (("experiment=smoke", "cut=u_shape"), "expected task=causal_lm"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_a_way_out(words, told):
    asked = [word for word in TINY if not word.startswith("experiment") or "experiment" not in words[0]]
    with pytest.raises(ConfigError, match=told):
        load([*(asked if "experiment" not in words[0] else ()), *words])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*GPT2[:3], NO_DEPTH, "cut.top=12"), "has 12 blocks.*expected cut.top=2 to 11"),
        (OPT, "like GPT-2 or Llama"),
        (("lora.targets=default", "lora.target_modules=[layers.2.mlp.up_proj]"), "the client's part"),
        (("lora.targets=default", "lora.target_modules=[layers.0.mlp.up_proj]"), "the server's part"),
    ],
)
def test_a_model_that_cannot_be_cut_so_is_refused_before_a_run(words, told):
    from fedsa_lora.launch.plan import make_plan

    with pytest.raises((ModelError, ConfigError), match=told):
        make_plan(load([*TINY, *words, "run.dir=/tmp/nowhere-at-all"]))
