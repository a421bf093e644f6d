"""Scores of tensors: what autograd says of each, taken while training and without touching it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedsa_lora.config import load
from fedsa_lora.errors import TrainingError
from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.learning.importance import ImportanceMeter, Scores, Scoring
from fedsa_lora.learning.training import TrainSettings, round_batches, train
from fedsa_lora.seeds import generator

SETTINGS = TrainSettings(lr=1e-2, head_lr=1e-2, steps=4, batch_size=4)
SCORES = ["gradient", "fisher", "taylor"]


@pytest.fixture(scope="module")
def bench():
    """A real small task: one client of the smoke experiment, at the start, where B is zero. Without
    dropout, so that a step can be done again."""
    config = load(["experiment=smoke", "lora.dropout=0"])
    model = AdapterModel(attach(config.task.build_model(seed=0), config.lora))
    for module in model.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    data = config.task.load_client("0")
    factors = [spec.name for spec in model.layout if spec.role in ("A", "B")]
    start = initial_state(model.layout, 0)
    return SimpleNamespace(task=config.task, model=model, data=data.train, start=start, factors=factors)


def trained(bench, settings, observe=None, trained=None, **options):
    """The state after training."""
    bench.model.write(bench.start)
    names = frozenset(bench.model.layout.names if trained is None else trained)
    batches = round_batches(bench.data.lengths, settings, generator(0, "test"))
    options |= {"trained": names, "batches": batches, "torch_seed": 1, "observe": observe}
    train(bench.model, bench.task, bench.data, settings, **options)
    return bench.model.read()


def measured(bench, score, settings, **options) -> dict[str, float]:
    meter = ImportanceMeter(Scoring(score, tuple(bench.factors)))
    trained(bench, settings, meter.observe, **options)
    return dict(zip(bench.factors, meter.scores().means(), strict=True))


def by_autograd(bench, settings, **options) -> dict[str, dict[str, float]]:
    """Every score by name: each batch but the first, tensor by tensor, in the states that training was in."""
    states = []
    trained(bench, settings, lambda model: states.append(model.read()), **options)
    batches = round_batches(bench.data.lengths, settings, generator(0, "test"))[1:]
    bench.model.set_trainable(frozenset(bench.factors))
    found = {score: dict.fromkeys(bench.factors, 0.0) for score in SCORES}
    for state, indices in zip(states, batches, strict=True):
        bench.model.write(state)
        loss = bench.task.loss(bench.model.module, bench.task.collate(bench.data, indices))
        for name in bench.factors:
            (gradient,) = torch.autograd.grad(loss, bench.model.parameter(name), retain_graph=True)
            g, theta = gradient.double().numpy(), state[name].astype(np.float64)
            for score, values in (("gradient", abs(g)), ("fisher", g**2), ("taylor", abs(theta * g))):
                found[score][name] += values.mean() / len(batches)
    return found


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, clip_norm=1e-3),
        replace(SETTINGS, optimizer="sgd", momentum=0.9, weight_decay=0.1),
        replace(SETTINGS, steps=None, epochs=1),
    ],
    ids=["as usual", "clipped hard", "sgd", "an epoch"],
)
def test_scores_are_those_of_autograd_without_the_first_step(bench, settings):
    expected = by_autograd(bench, settings)
    for score in SCORES:
        assert measured(bench, score, settings) == pytest.approx(expected[score], rel=1e-6)


def test_a_proximal_term_is_not_in_the_scores(bench):
    reference = {name: bench.start[name] + 1 for name in bench.factors}
    expected = by_autograd(bench, SETTINGS, proximal=(10.0, reference))
    for score in SCORES:
        found = measured(bench, score, SETTINGS, proximal=(10.0, reference))
        assert found == pytest.approx(expected[score], rel=1e-6)


def test_the_first_step_in_which_a_has_no_gradient_is_not_observed(bench):
    seen = []
    trained(bench, SETTINGS, lambda model: seen.append(model.read()))
    assert len(seen) == SETTINGS.steps - 1
    for name in bench.factors:  # what is seen has moved already: B at once, A in the second step
        assert np.array_equal(seen[0][name], bench.start[name]) == (".lora_A." in name)
    assert min(measured(bench, "gradient", SETTINGS).values()) > 0


@pytest.mark.parametrize("score", SCORES)
def test_observing_changes_no_bit_of_training(bench, score):
    options = replace(SETTINGS, steps=6)
    without = trained(bench, options)
    observed = trained(bench, options, ImportanceMeter(Scoring(score, tuple(bench.factors))).observe)
    for name, value in without.items():
        np.testing.assert_array_equal(observed[name], value, err_msg=name)


@pytest.mark.parametrize("score", SCORES)
def test_one_step_is_not_enough_and_the_error_says_what_is(bench, score):
    with pytest.raises(TrainingError, match=r"at least two local steps.*set train\.steps to 2"):
        measured(bench, score, replace(SETTINGS, steps=1))


@pytest.mark.parametrize("score", SCORES)
def test_scores_come_in_the_order_of_the_names_and_what_is_not_trained_scores_zero(bench, score):
    moving = [name for name in bench.factors if ".lora_B." in name]
    names = bench.factors[::-1]
    meter = ImportanceMeter(Scoring(score, tuple(names)))
    trained(bench, SETTINGS, meter.observe, trained=moving)
    found = dict(zip(names, meter.scores().means(), strict=True))
    assert {name for name, value in found.items() if value > 0} == set(moving)
    alone = ImportanceMeter(Scoring(score, tuple(moving[:1])))
    trained(bench, SETTINGS, alone.observe, trained=moving)
    assert alone.scores().means() == [found[moving[0]]]
    nothing = ImportanceMeter(Scoring(score, ()))
    trained(bench, SETTINGS, nothing.observe)
    assert nothing.scores().means() == []


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_half_precision_are_not_in_units_of_the_loss_scale(bench, score):
    full = measured(bench, score, SETTINGS)
    for precision in ("bf16", "fp16"):
        half = measured(bench, score, replace(SETTINGS, precision=precision))
        assert half == pytest.approx(full, rel=0.5), precision


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("score", SCORES)
def test_a_step_that_the_scaler_skips_does_not_count(bench, score, bad):
    name, other = bench.factors[:2]
    bench.model.write(bench.start)
    bench.model.set_trainable(frozenset(bench.factors))
    meter = ImportanceMeter(Scoring(score, (name, other)))
    parameter, calm = bench.model.parameter(name), bench.model.parameter(other)
    for value in (bad, 2.0, 4.0):
        parameter.grad, calm.grad = torch.full_like(parameter, value), torch.ones_like(calm)
        meter.observe(bench.model)
        if value is bad:
            with pytest.raises(TrainingError, match="gradients were not finite in any of 1 steps"):
                meter.scores().means()
    size = float(abs(bench.start[name].astype(np.float64)).mean())
    expected = {"gradient": 3.0, "fisher": 10.0, "taylor": 3.0 * size}[score]
    assert meter.scores().means()[0] == pytest.approx(expected, rel=1e-6)


def test_scores_of_two_trainings_are_the_means_over_the_steps_of_both():
    one, two = (
        Scores(np.array([[2.0, 3.0]]), np.ones(2)),
        Scores(np.array([[4.0, 0.0], [6.0, 0.0]]), np.ones(2)),
    )
    assert (one + two).means() == [4.0, 1.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("score", SCORES)
def test_a_gpu_scores_as_the_cpu_does(bench, score):
    cpu = measured(bench, score, SETTINGS)
    bench.model.module.to("cuda")
    gpu = measured(bench, score, SETTINGS)
    bench.model.module.to("cpu")
    assert gpu == pytest.approx(cpu, rel=1e-2)
