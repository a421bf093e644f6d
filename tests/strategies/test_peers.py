"""The rules beside other code: PEFT's merging of adapters, Flower's server optimizers, docs/peers.md."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import peers
import pytest
import torch
from flwr.server.strategy.aggregate import aggregate_trimmed_avg
from transformers import LlamaConfig, LlamaForCausalLM

from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.learning.adapters import ADAPTER, AdapterModel, LoraSettings, attach
from strategies import FlexLoRA, FLoRA
from strategies.rules.flower import rule_for
from strategies.rules.updates import Update

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "peers.md").read_text()
RANK, SCALE, EXAMPLES = 4, 2.0, (20, 30, 50)
LLAMA = LlamaConfig(
    vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1,
)  # fmt: skip
Arrays = dict[str, np.ndarray]


def tiny() -> AdapterModel:
    """A Llama with LoRA in each linear layer: 16 x 16, 8 x 16, 24 x 16 and 16 x 24."""
    torch.manual_seed(0)
    lora = LoraSettings(r=RANK, alpha=SCALE * RANK, dropout=0.0, targets="all_linear")
    return AdapterModel(attach(LlamaForCausalLM(LLAMA), lora))


def factors(model: AdapterModel) -> Layout:
    return model.layout.select(spec.name for spec in model.layout if spec.role in ("A", "B"))


def random_clients(layout: Layout, ranks, seed: int) -> list[Arrays]:
    """Factors of each client, zero beyond its rank."""
    rng, clients = np.random.default_rng(seed), []
    for rank in ranks:
        values = {spec.name: rng.normal(size=spec.shape).astype(np.float32) for spec in layout}
        for spec in layout:
            beyond = np.s_[rank:] if spec.role == "A" else np.s_[:, rank:]
            values[spec.name][beyond] = 0
        clients.append(values)
    return clients


def changes(model: AdapterModel, adapter: str, first: Mapping[str, torch.Tensor]) -> Arrays:
    """By layer: how far the weight that a forward pass uses is from the pretrained one."""
    return {
        name: (layer.get_base_layer().weight - first[name] + layer.get_delta_weight(adapter)).detach().numpy()
        for name, layer in model.linear_layers().items()
    }


def pretrained(model: AdapterModel) -> dict[str, torch.Tensor]:
    return {
        name: layer.get_base_layer().weight.detach().clone() for name, layer in model.linear_layers().items()
    }


def by_peft(clients: list[Arrays], ranks, examples, how: str) -> Arrays:
    """The combination of adapters of stock PEFT, one for each client with its own rank and alpha = s r."""
    model = tiny()
    first, names = pretrained(model), [f"client{k}" for k in range(len(clients))]
    config = model.module.peft_config[ADAPTER]
    for name, client, rank in zip(names, clients, ranks, strict=True):
        model.module.add_adapter(name, replace(config, r=rank, lora_alpha=SCALE * rank))
        for layer, module in model.linear_layers().items():
            a, b = client[f"{layer}.lora_A.weight"][:rank], client[f"{layer}.lora_B.weight"][:, :rank]
            module.lora_A[name].weight.data.copy_(torch.from_numpy(a))
            module.lora_B[name].weight.data.copy_(torch.from_numpy(b))
    weights = [n / sum(examples) for n in examples]
    model.module.add_weighted_adapter(names, weights, "merged", combination_type=how, svd_rank=RANK)
    return changes(model, "merged", first)


def by_rule(inner, clients: list[Arrays], ranks) -> Arrays:
    """The model of a client at the beginning of the next round: the server's factors and what it merged."""
    model = tiny()
    layout, first = factors(model), pretrained(model)
    start = layout.pack({name: model.read()[name] for name in layout.names})
    updates = [
        Update(str(k), n, frozenset(layout.names), None, layout.pack(client) - start, rank=rank)
        for k, (client, n, rank) in enumerate(zip(clients, EXAMPLES, ranks, strict=True))
    ]
    step = rule_for(inner, layout)(1, start, updates)
    model.write(model.read() | layout.unpack(step.vector))
    model.merge({layer: part.B @ part.A for layer, part in step.merge.items()})
    return changes(model, ADAPTER, first)


def largest_error(found: Arrays, expected: Arrays) -> float:
    assert found.keys() == expected.keys()
    assert len(found) == 7
    return max(peers.relative(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 4, 2)], ids=["equal ranks", "mixed ranks"])
@pytest.mark.parametrize(
    ("inner", "how", "bound"),
    [(FLoRA(seed=0), "cat", 1e-6), (FlexLoRA(), "svd", 1e-5)],
    ids=["FLoRA and cat", "FlexLoRA and svd"],
)
def test_a_model_has_the_weights_that_peft_makes_of_the_clients_adapters(inner, how, bound, ranks):
    clients = random_clients(factors(tiny()), ranks, seed=1)
    found = by_rule(inner, clients, ranks)
    assert largest_error(found, by_peft(clients, ranks, EXAMPLES, how)) < bound
    assert largest_error(found, by_peft(clients, ranks, (1, 1, 1), how)) > 0.1, "the weights count"


# --- server optimizers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
def test_flowers_server_optimizers_differ_from_the_paper_in_the_start_of_v_and_fedadams_correction_alone(
    name,
):
    deltas, tau = peers.differences(0.01), peers.settings(name)["tau"]
    paper, changed = peers.steps_of_paper(name, deltas), peers.steps_of_flower(name, deltas, begin=tau**2)
    for round_, (found, step) in enumerate(zip(changed, paper, strict=True), 1):
        np.testing.assert_allclose(found, step * peers.correction(name, round_), rtol=0, atol=1e-12)
    assert peers.relative(peers.steps_of_flower(name, deltas)[0], paper[0]) > 0.03


# --- robust rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [4, 5])
def test_the_trimmed_mean_cuts_no_value_of_fewer_clients_than_one_over_beta(clients):
    vectors, beta = (
        np.random.default_rng(0).normal(size=(clients, 9)),
        peers.settings("fedtrimmedavg")["beta"],
    )
    (found,) = aggregate_trimmed_avg([([vector], 1) for vector in vectors], beta)
    assert np.allclose(found, vectors.mean(axis=0)) == (clients < 1 / beta)


# --- docs/peers.md -----------------------------------------------------------------------------------


def test_the_docs_have_the_rows_that_the_benchmark_prints():
    missing = [row for row in peers.report() if row not in PAGE]
    assert missing == []
