"""A mixture of two experts, against plain matrix algebra, autograd, and the plain model of either expert."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lora_cases import CASES, Case, logits, moved

from fedsa_lora.config.compose import load
from fedsa_lora.errors import ModelError
from fedsa_lora.learning.adapters import AdapterModel, attach
from fedsa_lora.learning.experts import Experts, expert, mixed
from fedsa_lora.learning.job import OneByOne, complete
from fedsa_lora.learning.local_round import LocalRound
from fedsa_lora.learning.personalisation import Personalisation
from fedsa_lora.learning.training import TrainSettings

LINEAR = {"lora", "rslora", "pissa", "orthogonal", "layer_ranks", "gpt2", "gpt2_pissa", "convnext"}
FITTING = [case for case in CASES if case.name in LINEAR]
OPEN, SHUT = 1e4, -1e4  # biases with which g is 1 and 0
ATOL = 1e-5
named = pytest.mark.parametrize("case", FITTING, ids=lambda case: case.name)


def part(model: AdapterModel, seed: int) -> dict[str, np.ndarray]:
    """An expert drawn from a seed."""
    values = moved(model, seed)
    return {name: values[name] for name in expert(model.layout)}


def gates(model: AdapterModel, bias: float = 0.0, scale: float = 0.0) -> dict[str, np.ndarray]:
    rng, found = np.random.default_rng(9), {}
    for layer, (A, _) in model.factors().items():
        found[f"{layer}.gate.weight"] = rng.normal(0, scale, (1, A.in_features)).astype(np.float32)
        found[f"{layer}.gate.bias"] = np.full(1, bias, np.float32)
    return found


def output(model: AdapterModel, case: Case, own, rest, gate) -> torch.Tensor:
    with mixed(model, own | gate, rest):
        return logits(model.module, case)


def alone(model: AdapterModel, case: Case, values) -> torch.Tensor:
    model.write(model.read() | values)
    return logits(model.module, case)


@pytest.fixture
def one() -> tuple[AdapterModel, Case]:
    model = FITTING[0].model()
    model.write(moved(model))
    return model, FITTING[0]


@named
def test_with_the_gate_at_one_or_at_zero_the_model_is_that_of_one_expert_alone(case):
    model = case.model()
    own, rest = part(model, 2), part(model, 3)
    wide_open = output(model, case, own, rest, gates(model, OPEN))
    shut = output(model, case, own, rest, gates(model, SHUT))
    torch.testing.assert_close(wide_open, alone(model, case, own), atol=ATOL, rtol=0)
    torch.testing.assert_close(shut, alone(model, case, rest), atol=ATOL, rtol=0)
    assert (wide_open - shut).abs().max() > 100 * ATOL


@named
def test_two_equal_experts_are_one_whatever_the_gate_says(case):
    model = case.model()
    own = part(model, 2)
    found = output(model, case, own, own, gates(model, 0.3, scale=1.0))
    torch.testing.assert_close(found, alone(model, case, own), atol=ATOL, rtol=0)


def layer_of(model: AdapterModel) -> tuple[str, torch.nn.Module]:
    name = next(iter(model.factors()))
    return name, model.module.get_submodule(f"base_model.model.{name}")


def test_a_layer_and_its_gradients_are_those_of_the_formula(one):
    """h = W0 x + b0 + g s B A x + (1 - g) s B_row A_row x, g = sigmoid(w x + b), by autograd alone."""
    model, _ = one
    own, rest, gate = part(model, 2), part(model, 3), gates(model, 0.2, scale=0.5)
    name, layer = layer_of(model)
    x, pull = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    names = [f"{name}.lora_A.weight", f"{name}.lora_B.weight", f"{name}.gate.weight", f"{name}.gate.bias"]
    leaves = [torch.tensor((own | gate)[n], requires_grad=True) for n in names]
    A, B, w, b = leaves
    A_row, B_row = (torch.tensor(rest[n]) for n in names[:2])
    g = torch.sigmoid(x @ w.T + b)
    s, base = model.scales[name], layer.get_base_layer()
    expected = x @ base.weight.T + base.bias + g * s * (x @ A.T @ B.T) + (1 - g) * s * (x @ A_row.T @ B_row.T)
    with mixed(model, own | gate, rest) as trained:
        model.set_trainable(frozenset(expert(model.layout)))
        found = layer(x)
        (found * pull).sum().backward()
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad((expected * pull).sum(), leaves)
    parameters = [*map(model.parameter, names[:2]), *(trained[n] for n in names[2:])]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-4)
        assert gradient.abs().max() > 0


def test_without_the_mixture_the_model_has_the_bits_of_the_plain_one(one):
    model, case = one
    own = part(model, 2)
    plain = alone(model, case, own)
    mixture = output(model, case, own, part(model, 3), gates(model))
    assert torch.equal(logits(model.module, case), plain)
    assert not torch.equal(mixture, plain)

    def failing() -> None:
        with mixed(model, own, part(model, 3)):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert torch.equal(logits(model.module, case), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in LINEAR], ids=lambda case: case.name)
def test_any_other_adapter_is_refused_on_names_and_shapes_alone(case):
    with pytest.raises(ModelError, match=r": expected plain LoRA on a linear layer"):
        Experts().check(case.skeleton())


@named
def test_a_fitting_adapter_is_recognised_on_names_and_shapes_alone(case):
    Experts().check(case.skeleton())


# One round of a client of the smoke experiment.

SETTINGS = TrainSettings(optimizer="sgd", lr=0.1, steps=4, batch_size=4, clip_norm=None)


@pytest.fixture
def bench() -> OneByOne:
    config = load(["experiment=smoke"])
    return OneByOne(AdapterModel(attach(config.task.build_model(seed=0), config.lora)), config.task)


@pytest.fixture
def local(bench) -> LocalRound:
    layout, values = bench.model.layout, moved(bench.model)
    return LocalRound(
        layout=layout,
        values=values,
        examples=bench.task.load_client("0").train,
        settings=SETTINGS,
        trained=frozenset(layout.names),
        seed=0,
        client="0",
        round=1,
        anchor={name: values[name] for name in expert(layout)},
        others=part(bench.model, 5),
    )


def fitted(bench, method: Personalisation, local, personal):
    """The outcome that is shared from and what is kept, after one round of a method."""
    (found,) = complete([method.fit(local, personal)], bench)
    return found


def test_a_round_trains_the_own_expert_and_the_gates_and_shares_from_them(bench, local):
    personal = part(bench.model, 2) | gates(bench.model, 0.5)
    head = {s.name for s in local.layout if s.role == "head"}
    outcome, kept = fitted(bench, Experts(), local, personal)
    before, after = outcome.start, outcome.values
    assert outcome.report.steps == 4
    assert all(np.array_equal(before[name], value) for name, value in local.values.items())
    assert kept.keys() == personal.keys()
    assert all(np.array_equal(kept[name], after[name]) for name in expert(local.layout))
    assert all(not np.array_equal(kept[name], value) for name, value in personal.items())
    assert all(not np.array_equal(before[name], after[name]) for name in head)


def test_with_an_open_gate_a_round_is_that_of_the_own_expert_alone(bench, local):
    personal = part(bench.model, 2)
    _, kept = fitted(bench, Experts(), local, personal | gates(bench.model, OPEN))
    plain, _ = fitted(bench, Personalisation(), replace(local, values=local.values | personal), {})
    for name in personal:
        np.testing.assert_allclose(kept[name], plain.values[name], rtol=0, atol=1e-5)


def test_at_first_the_own_expert_is_the_common_one_and_the_gate_is_half_open(bench, local):
    still = replace(local, settings=replace(SETTINGS, lr=1e-30))
    _, kept = fitted(bench, Experts(), still, {})
    assert all(np.array_equal(kept[name], value) for name, value in local.anchor.items())
    assert all(np.abs(kept[name]).max() < 1e-20 for name in kept.keys() - local.anchor.keys())


def test_gradients_of_gates_are_clipped_with_the_others(bench, local):
    """In one step of SGD everything that is trained moves by lr times the norm that is left, or less."""
    own = part(bench.model, 2)
    clipped = replace(local, settings=replace(SETTINGS, clip_norm=1e-3, steps=1, lr=1.0))
    start = local.values | own | gates(bench.model)
    outcome, kept = fitted(bench, Experts(), clipped, own)
    end = outcome.values | kept
    moved_by = np.sqrt(sum(float(((end[name] - start[name]).astype(float) ** 2).sum()) for name in end))
    assert moved_by == pytest.approx(1e-3, rel=1e-2)


def test_the_own_model_is_the_mixture_with_a_personal_part_and_the_common_one_without(bench, local):
    personal = part(bench.model, 2) | gates(bench.model, SHUT)

    def answers(job) -> np.ndarray:
        (outcome,) = bench([replace(job, asked=(local.examples,))])
        return outcome.answers[0]

    nothing, mixture = (answers(Experts().own(local, kept)) for kept in ({}, personal))
    assert np.array_equal(answers(local.still()), nothing)
    rest = answers(local.still(values=local.values | local.others))
    np.testing.assert_allclose(rest, mixture, atol=ATOL, rtol=0)
    assert np.abs(mixture - nothing).max() > 100 * ATOL
