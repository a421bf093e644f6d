"""What each personalisation method does in a client's round, against plain PyTorch and plain training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError
from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.learning.job import Job, OneByOne, Outcome, complete
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
from fedsa_lora.learning.unlearning import Retrain, Unlearning
from fedsa_lora.phases import Phases
from fedsa_lora.seeds import generator

SETTINGS = TrainSettings(optimizer="sgd", lr=0.1, steps=4, batch_size=4, clip_norm=None)


@pytest.fixture(scope="module")
def bench() -> OneByOne:
    """The model and the task of the smoke experiment."""
    config = load(["experiment=smoke"])
    return OneByOne(AdapterModel(attach(config.task.build_model(seed=0), config.lora)), config.task)


@pytest.fixture(scope="module")
def local(bench) -> LocalRound:
    """A client at the start of a round, with A as it was broadcast, and B not zero."""
    layout, rng = bench.model.layout, np.random.default_rng(1)
    anchor = {name: value for name, value in initial_state(layout, 0).items() if "lora_A" in name}
    start = {s.name: anchor.get(s.name, 0.1 * rng.normal(size=s.shape).astype(np.float32)) for s in layout}
    return LocalRound(
        layout=layout,
        values=start,
        examples=bench.task.load_client("0").train,
        settings=SETTINGS,
        trained=frozenset(layout.names),
        seed=0,
        client="0",
        round=1,
        anchor=anchor,
    )


@pytest.fixture(scope="module")
def start(local):
    return local.values


def fitted(bench, local, method: Personalisation, personal=None):
    """What is shared from and the personal model, after one round of a method."""
    ((outcome, own),) = complete([method.fit(local, personal or {})], bench)
    assert outcome.report.steps == len(local.plain().batches)
    return outcome.values, own


def done(bench, job: Job) -> Outcome:
    (outcome,) = bench([job])
    return outcome


def apart(one, two) -> float:
    assert one.keys() == two.keys()
    return max(float(np.abs(one[name] - two[name]).max()) for name in one)


@pytest.mark.parametrize(
    "method", [FineTune(3), Reptile(epsilon=1.0), PerFedAvg(alpha=0.0), Ditto(0.5), Distillation(0.7, 3.0)]
)
def test_what_is_shared_is_that_of_plain_training(bench, local, start, method):
    assert apart(fitted(bench, local, method)[0], fitted(bench, local, Personalisation())[0]) == 0


@pytest.mark.parametrize("method", [Ditto(0.0), Distillation(weight=0.0)])
def test_without_its_term_a_personal_model_is_trained_as_if_alone(bench, local, start, method):
    elsewhere = {name: value + np.float32(0.01) for name, value in start.items()}
    _, own = fitted(bench, local, method, elsewhere)
    assert apart(own, fitted(bench, replace(local, values=elsewhere), Personalisation())[0]) == 0


def test_dittos_term_holds_the_personal_model_near_the_common_one(bench, local, start):
    far = {name: value + np.float32(0.3) for name, value in start.items()}

    def distance(weight: float) -> float:
        _, own = fitted(bench, local, Ditto(weight), far)
        return sum(float(((own[n] - local.anchor[n]) ** 2).sum()) for n in local.anchor)

    assert distance(0.0) > distance(1.0) > distance(4.0) > 0


def test_reptile_goes_a_part_of_the_way_in_what_is_shared_and_all_of_it_in_the_rest(bench, local, start):
    whole, _ = fitted(bench, local, Personalisation())
    part, _ = fitted(bench, local, Reptile(epsilon=0.25))
    for name in start:
        way = 0.25 if name in local.anchor else 1.0
        np.testing.assert_allclose(part[name], start[name] + way * (whole[name] - start[name]), atol=1e-6)


def test_pfedme_moves_w_by_eta_lambda_towards_theta(bench, local, start):
    for eta, part in ((0.25, 1.0), (0.05, 0.2)):
        w, theta = fitted(bench, local, PFedMe(weight=4.0, eta=eta, inner=4))
        for name in start:
            way = part if name in local.anchor else 1.0
            np.testing.assert_allclose(w[name], start[name] + way * (theta[name] - start[name]), atol=1e-6)


def test_pfedme_without_its_term_shares_nothing_new_and_its_theta_is_plain(bench, local, start):
    w, theta = fitted(bench, local, PFedMe(weight=0.0, inner=4))
    assert all(np.array_equal(w[name], start[name]) for name in local.anchor)
    assert apart(theta, fitted(bench, local, Personalisation())[0]) == 0


def test_pfedme_in_more_than_one_part_goes_on_from_the_w_of_the_part_before(bench, local, start):
    w, _ = fitted(bench, local, PFedMe(weight=4.0, eta=0.25, inner=2))
    theta = done(bench, local.job(mu=4.0, anchor=local.anchor, steps=2)).values
    anchor = {name: theta[name] for name in local.anchor}
    after = local.job(values=theta, mu=4.0, anchor=anchor, steps=2, part="inner 1")
    assert apart(w, done(bench, after).values) < 1e-6


def test_the_gradient_of_per_fedavg_is_that_one_step_ahead(bench, local, start):
    """theta - lr grad L2(theta - alpha grad L1(theta)), by autograd alone, without dropout."""
    model, task, alpha = bench.model, bench.task, 0.5
    parameters = [model.parameter(name) for name in sorted(local.trained)]
    still = replace(SETTINGS, steps=1)
    key, indices = ("0", 1), np.arange(4)
    other = generator(5, "ahead", *key).choice(len(local.examples), 4, replace=False)
    model.write(start)
    model.set_trainable(local.trained)
    model.module.eval()
    first = torch.autograd.grad(task.loss(model.module, task.collate(local.examples, other)), parameters)
    ahead = dict(zip(sorted(local.trained), first, strict=True))
    model.write({name: start[name] - alpha * ahead[name].numpy() for name in start})
    expected = torch.autograd.grad(task.loss(model.module, task.collate(local.examples, indices)), parameters)
    model.write(start)
    objective = Ahead(model, task, local.examples, still, alpha, local.trained, 5, key)
    (found,) = (torch.autograd.grad(loss, parameters) for loss in objective.at(indices))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)
    assert apart(model.read(), start) == 0


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.4, 2.5)])
def test_the_distilled_loss_is_that_of_the_formula(bench, local, start, weight, temperature):
    bench.model.write(start)
    logits = torch.from_numpy(predict(bench.model, bench.task, local.examples, SETTINGS))
    teacher = logits + torch.linspace(-1, 1, logits.shape[1])
    indices = np.array([3, 0, 7])
    labels = torch.from_numpy(local.examples.labels[indices])
    student = logits[indices]
    p = functional.softmax(teacher[indices] / temperature, dim=1)
    q = functional.softmax(student / temperature, dim=1)
    kl = (p * (p / q).log()).sum(1).mean()
    expected = (1 - weight) * functional.cross_entropy(student, labels) + weight * temperature**2 * kl
    taught = Taught(bench.model, bench.task, local.examples, SETTINGS, teacher, weight, temperature)
    assert taught.loss(indices).item() == pytest.approx(expected.item(), rel=1e-4)
    same = Taught(bench.model, bench.task, local.examples, SETTINGS, logits, 0.5, temperature)
    plain = Objective(bench.model, bench.task, local.examples, SETTINGS)
    assert same.loss(indices).item() == pytest.approx(0.5 * plain.loss(indices).item(), rel=1e-4)


def test_a_pupil_comes_nearer_to_its_teacher_than_one_that_learns_from_labels_alone(bench, local, start):
    bench.model.write(start)
    teacher = predict(bench.model, bench.task, local.examples, SETTINGS)
    far = {name: value + np.float32(0.05) for name, value in start.items()}

    def distance(weight: float) -> float:
        _, own = fitted(bench, local, Distillation(weight, 1.0), far)
        bench.model.write(own)
        return float(np.abs(predict(bench.model, bench.task, local.examples, SETTINGS) - teacher).mean())

    assert distance(1.0) < distance(0.0)


def test_fine_tuning_moves_the_model_and_none_does_not(bench, local, start):
    for method, moves in ((Personalisation(), False), (FineTune(0), False), (FineTune(2), True)):
        assert (apart(done(bench, method.own(local, {})).values, start) > 0) == moves


@pytest.mark.parametrize(
    "method", [Personalisation(), Ditto(0.5), PFedMe(inner=2), Distillation(), Reptile()]
)
def test_a_method_asks_for_the_same_whatever_model_its_jobs_are_done_on(bench, local, method):
    """Neither what stands in a model, nor what is done on it between two jobs of a client, changes a bit."""
    expected, own = fitted(bench, local, method)
    elsewhere = replace(local, client="1", values={n: v + np.float32(0.5) for n, v in local.values.items()})
    trainings = [Ditto(0.1).fit(elsewhere, {}), method.fit(local, {}), Personalisation().fit(elsewhere, {})]
    _, (outcome, found), _ = complete(trainings, bench)
    assert apart(outcome.values, expected) == 0
    assert found.keys() == own.keys()
    assert all(np.array_equal(found[name], own[name]) for name in own)


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


def test_a_class_is_plain_by_what_it_does_not_by_its_name():
    class Described(Personalisation):
        def describe(self) -> dict[str, str]:
            return {"personalisation": "none of mine"}

    assert Described().plain
    assert not any(method.plain for method in (FineTune(), Reptile(), Ditto(), Distillation()))


def test_unlearning_is_chosen_where_its_phases_ask_a_client_for_anything():
    class Later(Unlearning):
        @property
        def phases(self) -> Phases:
            return Phases(learn=1, unlearn=1, targets=self.names)

    class Described(Unlearning):
        """Plain training, by another name."""

    assert Later().chosen
    assert Retrain().chosen
    assert not Described().chosen
