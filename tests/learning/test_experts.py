"""A mixture of two experts, against plain matrix algebra, autograd, and the plain model of either expert."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lora_cases import CASES, Case, logits, moved

from fedsa_lora.config import load
from fedsa_lora.errors import ModelError
from fedsa_lora.learning.adapters import AdapterModel, attach
from fedsa_lora.learning.experts import Experts, expert, mixed
from fedsa_lora.learning.personalisation import LocalRound, Personalisation
from fedsa_lora.learning.training import TrainSettings

LINEAR = {"lora", "rslora", "pissa", "orthogonal", "layer_ranks", "gpt2", "gpt2_pissa", "convnext"}
FITTING = [case for case in CASES if case.name in LINEAR]
OPEN, SHUT = 1e4, -1e4  # biases with which g is 1 and 0
ATOL = 1e-5
named = pytest.mark.parametrize("case", FITTING, ids=lambda case: case.name)


def part(model: AdapterModel, seed: int) -> dict[str, np.ndarray]:
    """An expert drawn from a seed."""
    values = moved(model, seed)
    return {name: values[name] for name in expert(model)}


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
        model.set_trainable(frozenset(expert(model)))
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
def local() -> LocalRound:
    config = load(["experiment=smoke"])
    model = AdapterModel(attach(config.task.build_model(seed=0), config.lora))
    values, examples = moved(model), config.task.load_client("0").train
    model.write(values)
    common = {name: values[name] for name in expert(model)}
    names = frozenset(model.layout.names)
    return LocalRound(
        model, config.task, examples, SETTINGS, names, 0, "0", 1, anchor=common, others=part(model, 5)
    )


def test_a_round_trains_the_own_expert_and_the_gates_and_leaves_what_is_shared_in_the_model(local):
    personal = part(local.model, 2) | gates(local.model, 0.5)
    head = {s.name for s in local.model.layout if s.role == "head"}
    before = local.model.read()
    report, kept = Experts().fit(local, personal)
    after = local.model.read()
    assert report.steps == 4
    assert kept.keys() == personal.keys()
    assert all(np.array_equal(kept[name], after[name]) for name in expert(local.model))
    assert all(not np.array_equal(kept[name], value) for name, value in personal.items())
    assert all(not np.array_equal(before[name], after[name]) for name in head)


def test_with_an_open_gate_a_round_is_that_of_the_own_expert_alone(local):
    personal = part(local.model, 2)
    start = local.model.read()
    _, kept = Experts().fit(local, personal | gates(local.model, OPEN))
    local.model.write(start | personal)
    Personalisation().fit(local, {})
    plain = local.model.read()
    for name in personal:
        np.testing.assert_allclose(kept[name], plain[name], rtol=0, atol=1e-5)


def test_at_first_the_own_expert_is_the_common_one_and_the_gate_is_half_open(local):
    still = replace(local, settings=replace(SETTINGS, lr=1e-30))
    _, kept = Experts().fit(still, {})
    assert all(np.array_equal(kept[name], value) for name, value in local.anchor.items())
    assert all(np.abs(kept[name]).max() < 1e-20 for name in kept.keys() - local.anchor.keys())


def test_gradients_of_gates_are_clipped_with_the_others(local):
    """In one step of SGD everything that is trained moves by lr times the norm that is left, or less."""
    own = part(local.model, 2)
    clipped = replace(local, settings=replace(SETTINGS, clip_norm=1e-3, steps=1, lr=1.0))
    start = local.model.read() | own | gates(local.model)
    _, kept = Experts().fit(clipped, own)
    end = local.model.read() | kept
    moved_by = np.sqrt(sum(float(((end[name] - start[name]).astype(float) ** 2).sum()) for name in end))
    assert moved_by == pytest.approx(1e-3, rel=1e-2)


def test_ready_is_the_mixture_with_a_personal_part_and_the_common_model_without(local):
    personal, common = part(local.model, 2) | gates(local.model, SHUT), local.model.read()
    batch = {k: v for k, v in local.task.collate(local.examples, np.arange(4)).items() if k != "labels"}

    def seen(personal) -> torch.Tensor:
        local.model.write(common)
        with Experts().ready(local, personal), torch.no_grad():
            return local.model.module.eval()(**batch).logits

    nothing, mixture = seen({}), seen(personal)
    with torch.no_grad():
        local.model.write(common)
        assert torch.equal(local.model.module(**batch).logits, nothing)
        local.model.write(common | local.others)
        torch.testing.assert_close(local.model.module(**batch).logits, mixture, atol=ATOL, rtol=0)
    assert (mixture - nothing).abs().max() > 100 * ATOL
