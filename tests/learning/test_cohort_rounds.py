"""Three rounds of a federation of clients that are trained in one pass, beside the same one by one."""

from dataclasses import replace

import numpy as np
import pytest
from cohort_cases import bench
from numpy.testing import assert_allclose

from fedsa_lora.errors import TrainingError
from fedsa_lora.learning.cohort import Cohort
from fedsa_lora.learning.job import OneByOne, complete
from fedsa_lora.learning.personalisation import Ditto, FineTune, LocalRound, Personalisation, PFedMe, Reptile
from fedsa_lora.learning.settings import TrainSettings

SGD = TrainSettings(optimizer="sgd", lr=0.1, steps=None, epochs=1, batch_size=4, schedule="linear")
CLIENTS = 4


@pytest.fixture(scope="module")
def made():
    return bench("bert", dropout=True)


def federation(made, method, trainer, *, roles: str = "A", mu: float = 0.0, rounds: int = 3):
    """Common and local tensors after rounds of averaging the tensors of some roles."""
    shared = [spec.name for spec in made.layout if spec.role in roles.split()]
    common = {name: made.values(50)[name] for name in shared}
    own = {client: made.values(client) for client in range(CLIENTS)}
    personal = {client: {} for client in own}
    for round_ in range(1, rounds + 1):
        trainings = []
        for client, values in own.items():
            local = LocalRound(
                layout=made.layout,
                values=values | common,
                examples=made.examples(client, 8 + 5 * client),  # so that some have fewer steps
                settings=SGD,
                trained=frozenset(made.layout.names),
                seed=0,
                client=str(client),
                round=round_,
                anchor=common,
                mu=mu,
            )
            trainings.append(method.fit(local, personal[client]))
        results = complete(trainings, trainer)
        for client, (outcome, beside) in enumerate(results):
            own[client], personal[client] = outcome.values, beside
        common = {name: np.mean([own[c][name] for c in own], axis=0) for name in shared}
    return [common, *own.values(), *personal.values()]


def alike(one, two) -> None:
    for expected, found in zip(one, two, strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_allclose(found[name], value, rtol=0, atol=5e-5, err_msg=name)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("roles", ["A", pytest.param("A B head", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "method",
    [Personalisation(), Ditto(0.5), Reptile(epsilon=0.5), PFedMe(weight=2.0, eta=0.2, inner=2), FineTune(2)],
    ids=lambda method: type(method).__name__,
)
def test_rounds_of_a_cohort_are_those_of_training_one_by_one(made, method, roles):
    alone = federation(made, method, OneByOne(made.model, made.task), roles=roles)
    alike(alone, federation(made, method, Cohort(made.model, made.task, 3), roles=roles))


def test_so_are_those_with_the_term_of_fedprox(made):
    trainers = [OneByOne(made.model, made.task), Cohort(made.model, made.task, CLIENTS)]
    alike(*(federation(made, Personalisation(), trainer, mu=0.5) for trainer in trainers))


def test_an_error_is_raised_in_the_training_of_its_client_alone(made):
    def training(client: int, values):
        job = made.job(client, replace(SGD, steps=2, epochs=None), values=values)
        first = yield job
        return (yield replace(job, values=first.values))

    whole = {client: made.values(client) for client in range(3)}
    broken = {name: np.full_like(value, np.nan) for name, value in whole[1].items()}
    trainer = Cohort(made.model, made.task, 3)
    found = complete([training(c, broken if c == 1 else whole[c]) for c in whole], trainer)
    expected = complete([training(c, whole[c]) for c in whole], trainer)
    assert isinstance(found[1], TrainingError)
    for client in (0, 2):
        alike([expected[client].values], [found[client].values])
