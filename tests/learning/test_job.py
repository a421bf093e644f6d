"""Training as values: what becomes of a job that cannot be done, and of the training that asked for it."""

from dataclasses import replace

import numpy as np
import pytest

from fedsa_lora.config.compose import load
from fedsa_lora.errors import TrainingError
from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.learning.job import Job, OneByOne, complete, settled
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import round_batches
from fedsa_lora.seeds import generator

SETTINGS = TrainSettings(lr=1e-2, steps=2, batch_size=4)


@pytest.fixture(scope="module")
def bench() -> OneByOne:
    config = load(["experiment=smoke", "lora.dropout=0"])
    return OneByOne(AdapterModel(attach(config.task.build_model(seed=0), config.lora)), config.task)


@pytest.fixture(scope="module")
def sound(bench) -> Job:
    layout, examples = bench.model.layout, bench.task.load_client("0").train
    return Job(
        values=initial_state(layout, 0),
        trained=frozenset(layout.names),
        examples=examples,
        settings=SETTINGS,
        batches=round_batches(examples.lengths, SETTINGS, generator(0, "test")),
    )


@pytest.fixture(scope="module")
def broken(sound) -> Job:
    """The same with a head of NaN, so that no loss is finite."""
    heads = {n: np.full_like(v, np.nan) for n, v in sound.values.items() if "lora" not in n}
    return replace(sound, values=sound.values | heads)


def same(one, two) -> bool:
    return all(np.array_equal(one.values[name], two.values[name]) for name in one.values)


def test_a_job_that_cannot_be_done_leaves_an_error_in_its_place_and_the_others_as_they_are(
    bench, sound, broken
):
    (alone,) = bench([sound])
    before, error, after = bench([sound, broken, sound])
    assert same(before, alone)
    assert same(after, alone)
    assert isinstance(error, TrainingError)
    with pytest.raises(TrainingError):
        settled(error)
    assert settled(alone) is alone


def test_an_error_ends_the_training_that_asked_for_the_job_and_no_other(bench, sound, broken):
    def twice(first: Job):
        outcome = yield first
        return (yield replace(sound, values=outcome.values))

    one, error, two = complete([twice(sound), twice(broken), twice(sound)], bench)
    assert isinstance(error, TrainingError)
    assert same(one, two)


def test_a_training_may_go_on_after_an_error_and_one_may_fail_before_its_first_job(bench, sound, broken):
    def tries():
        try:
            yield broken
        except TrainingError:
            return (yield sound)

    def refuses():
        raise TrainingError("there is no example to train on")
        yield sound

    done, refused = complete([tries(), refuses()], bench)
    assert same(done, settled(*bench([sound])))
    assert isinstance(refused, TrainingError)
