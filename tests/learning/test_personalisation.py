"""What each personalisation method does in a client's round, against plain PyTorch and plain training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedsa_lora.config import load
from fedsa_lora.errors import ConfigError
from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.learning.objectives import Ahead, Taught
from fedsa_lora.learning.personalisation import (
    Distillation,
    Ditto,
    FineTune,
    LocalRound,
    PerFedAvg,
    Personalisation,
    PFedMe,
    Reptile,
)
from fedsa_lora.learning.training import Objective, TrainSettings, predict

SETTINGS = TrainSettings(optimizer="sgd", lr=0.1, steps=4, batch_size=4, clip_norm=None)


@pytest.fixture(scope="module")
def local() -> LocalRound:
    """A client of the smoke experiment at the start of a round, with B not zero."""
    config = load(["experiment=smoke"])
    model = AdapterModel(attach(config.task.build_model(seed=0), config.lora))
    rng = np.random.default_rng(0)
    start = initial_state(model.layout, 0)
    start |= {n: 0.1 * rng.normal(size=a.shape).astype(np.float32) for n, a in start.items() if "lora_B" in n}
    names = frozenset(model.layout.names)
    anchor = {name: value for name, value in start.items() if "lora_A" in name}
    examples = config.task.load_client("0").train
    return LocalRound(model, config.task, examples, SETTINGS, names, 0, "0", 1, anchor=anchor)


@pytest.fixture(scope="module")
def start(local):
    spec = {s.name: s for s in local.model.layout}
    rng = np.random.default_rng(1)
    return {
        name: local.anchor.get(name, 0.1 * rng.normal(size=spec[name].shape).astype(np.float32))
        for name in local.model.layout.names
    }


def fitted(local, start, method: Personalisation, personal=None):
    """What is shared from and the personal model, after one round of a method."""
    local.model.write(start)
    report, own = method.fit(local, personal or {})
    assert report.steps == local.steps
    return local.model.read(), own


def apart(one, two) -> float:
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) for name in one)


@pytest.mark.parametrize(
    "method", [FineTune(3), Reptile(epsilon=1.0), PerFedAvg(alpha=0.0), Ditto(0.5), Distillation(0.7, 3.0)]
)
def test_what_is_shared_is_that_of_plain_training(local, start, method):
    assert apart(fitted(local, start, method)[0], fitted(local, start, Personalisation())[0]) == 0


@pytest.mark.parametrize("method", [Ditto(0.0), Distillation(weight=0.0)])
def test_without_its_term_a_personal_model_is_trained_as_if_alone(local, start, method):
    elsewhere = {name: value + np.float32(0.01) for name, value in start.items()}
    _, own = fitted(local, start, method, elsewhere)
    assert apart(own, fitted(local, elsewhere, Personalisation())[0]) == 0


def test_dittos_term_holds_the_personal_model_near_the_common_one(local, start):
    far = {name: value + np.float32(0.3) for name, value in start.items()}

    def distance(weight: float) -> float:
        _, own = fitted(local, start, Ditto(weight), far)
        return sum(float(((own[n] - local.anchor[n]) ** 2).sum()) for n in local.anchor)

    assert distance(0.0) > distance(1.0) > distance(4.0) > 0


def test_reptile_goes_a_part_of_the_way_in_what_is_shared_and_all_of_it_in_the_rest(local, start):
    whole, _ = fitted(local, start, Personalisation())
    part, _ = fitted(local, start, Reptile(epsilon=0.25))
    for name in start:
        way = 0.25 if name in local.anchor else 1.0
        np.testing.assert_allclose(part[name], start[name] + way * (whole[name] - start[name]), atol=1e-6)


def test_pfedme_moves_w_by_eta_lambda_towards_theta(local, start):
    for eta, part in ((0.25, 1.0), (0.05, 0.2)):
        w, theta = fitted(local, start, PFedMe(weight=4.0, eta=eta, inner=4))
        for name in start:
            way = part if name in local.anchor else 1.0
            np.testing.assert_allclose(w[name], start[name] + way * (theta[name] - start[name]), atol=1e-6)


def test_pfedme_without_its_term_shares_nothing_new_and_its_theta_is_plain(local, start):
    w, theta = fitted(local, start, PFedMe(weight=0.0, inner=4))
    assert all(np.array_equal(w[name], start[name]) for name in local.anchor)
    assert apart(theta, fitted(local, start, Personalisation())[0]) == 0


def test_pfedme_in_more_than_one_part_goes_on_from_the_w_of_the_part_before(local, start):
    w, _ = fitted(local, start, PFedMe(weight=4.0, eta=0.25, inner=2))
    local.model.write(start)
    local.train(mu=4.0, anchor=local.anchor, steps=2)
    theta = local.model.read()
    local.train(mu=4.0, anchor={name: theta[name] for name in local.anchor}, steps=2, part="inner 1")
    assert apart(w, local.model.read()) < 1e-6


def test_the_gradient_of_per_fedavg_is_that_one_step_ahead(local, start):
    """theta - lr grad L2(theta - alpha grad L1(theta)), by autograd alone, without dropout."""
    model, task, alpha = local.model, local.task, 0.5
    parameters = [model.parameter(name) for name in sorted(local.trained)]
    still = replace(SETTINGS, steps=1)
    seed, indices = np.random.default_rng(5), np.arange(4)
    other = np.random.default_rng(5).choice(len(local.examples), 4, replace=False)
    model.write(start)
    model.set_trainable(local.trained)
    model.module.eval()
    first = torch.autograd.grad(task.loss(model.module, task.collate(local.examples, other)), parameters)
    ahead = dict(zip(sorted(local.trained), first, strict=True))
    model.write({name: start[name] - alpha * ahead[name].numpy() for name in start})
    expected = torch.autograd.grad(task.loss(model.module, task.collate(local.examples, indices)), parameters)
    model.write(start)
    objective = Ahead(model, task, local.examples, still, alpha, local.trained, seed)
    with objective.at(indices) as loss:
        found = torch.autograd.grad(loss, parameters)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)
    assert apart(model.read(), start) == 0


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.4, 2.5)])
def test_the_distilled_loss_is_that_of_the_formula(local, start, weight, temperature):
    local.model.write(start)
    logits = torch.from_numpy(predict(local.model, local.task, local.examples, SETTINGS))
    teacher = logits + torch.linspace(-1, 1, logits.shape[1])
    indices = np.array([3, 0, 7])
    labels = torch.from_numpy(local.examples.labels[indices])
    student = logits[indices]
    p = functional.softmax(teacher[indices] / temperature, dim=1)
    q = functional.softmax(student / temperature, dim=1)
    kl = (p * (p / q).log()).sum(1).mean()
    expected = (1 - weight) * functional.cross_entropy(student, labels) + weight * temperature**2 * kl
    taught = Taught(local.model, local.task, local.examples, SETTINGS, teacher, weight, temperature)
    assert taught.loss(indices).item() == pytest.approx(expected.item(), rel=1e-4)
    same = Taught(local.model, local.task, local.examples, SETTINGS, logits, 0.5, temperature)
    plain = Objective(local.model, local.task, local.examples, SETTINGS)
    assert same.loss(indices).item() == pytest.approx(0.5 * plain.loss(indices).item(), rel=1e-4)


def test_a_pupil_comes_nearer_to_its_teacher_than_one_that_learns_from_labels_alone(local, start):
    local.model.write(start)
    teacher = predict(local.model, local.task, local.examples, SETTINGS)
    far = {name: value + np.float32(0.05) for name, value in start.items()}

    def distance(weight: float) -> float:
        _, own = fitted(local, start, Distillation(weight, 1.0), far)
        local.model.write(own)
        return float(np.abs(predict(local.model, local.task, local.examples, SETTINGS) - teacher).mean())

    assert distance(1.0) < distance(0.0)


def test_fine_tuning_moves_the_model_and_none_does_not(local, start):
    for method, moves in ((Personalisation(), False), (FineTune(0), False), (FineTune(2), True)):
        local.model.write(start)
        with method.ready(local, {}):
            assert (apart(local.model.read(), start) > 0) == moves


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FineTune(-1), "steps=-1: expected at least 0"),
        (lambda: Reptile(epsilon=1.5), "epsilon=1.5: expected at least 0 and at most 1"),
        (lambda: PerFedAvg(alpha=-0.1), "alpha=-0.1"),
        (lambda: Ditto(float("nan")), "weight=nan"),
        (lambda: Distillation(temperature=0), "temperature=0: expected more than 0"),
        (lambda: Distillation(weight=2.0), "weight=2.0: expected at least 0 and at most 1"),
        (lambda: PFedMe(inner=0), "inner=0: expected at least 1"),
    ],
)
def test_a_setting_out_of_range_is_named(make, told):
    with pytest.raises(ConfigError, match=told):
        make()
