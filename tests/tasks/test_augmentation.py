"""Train images are changed a little in each round, the same for any trainer; test images never are."""

from itertools import product

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from pictures import drawn, encoded, task, vit, write_parquet

from fedsa_lora.client.model import ClientModel
from fedsa_lora.client.personal import OwnModel
from fedsa_lora.client.workbench import Workbench
from fedsa_lora.exchange.split import RoleSplit
from fedsa_lora.learning.adapters import AdapterModel, LoraSettings, attach
from fedsa_lora.learning.cohort import Cohort
from fedsa_lora.learning.cohort.fit import why_not
from fedsa_lora.learning.job import OneByOne
from fedsa_lora.learning.personalisation import Distillation
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.tasks.augmentation import Augmentation

CLIENTS = ("0", "1", "2")
SETTINGS = TrainSettings(optimizer="sgd", lr=0.1, steps=4, batch_size=4)
PIXELS = "pixel_values"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    pixels, labels = drawn(45)
    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    return write_parquet(path, [encoded(each) for each in pixels], labels)


def bench(rows: str, **fields) -> Workbench:
    """Three clients of a small vision transformer, whose task augments as ``fields`` say."""
    torch.manual_seed(0)
    found = task(rows, vit(), clients=3, **fields)
    model = AdapterModel(attach(found.build_model(seed=0), LoraSettings(r=2, alpha=4, dropout=0.0)))
    return Workbench(found, model, RoleSplit(A="shared", B="local", head="local"), SETTINGS, seed=0)


def jobs(made: Workbench, clients=CLIENTS, round_: int = 1) -> dict:
    """The plain training of each client in a round."""
    trained, values = frozenset(made.model.layout.names), made.initial
    return {name: ClientModel(name, made, None).local(round_, trained, values).plain() for name in clients}


def test_an_image_is_moved_within_its_mirrored_border_and_half_are_turned():
    pixels = drawn(64, side=6)[0].transpose(0, 3, 1, 2)
    rng = np.random.default_rng(0)
    turned = Augmentation(flip=True)(pixels, rng)
    mirrored = [(each != image).any() for each, image in zip(turned, pixels, strict=True)]
    assert 16 < sum(mirrored) < 48
    assert_array_equal(np.where(np.array(mirrored)[:, None, None, None], turned[..., ::-1], turned), pixels)
    moved = Augmentation(crop=2)(pixels, rng)
    wide = np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    places = set()
    for image, around in zip(moved, wide, strict=True):
        found = [
            at for at in product(range(5), repeat=2)
            if (around[:, at[0] : at[0] + 6, at[1] : at[1] + 6] == image).all()
        ]  # fmt: skip
        places |= set(found)
        assert found
    assert len(places) > 15
    assert (moved.shape, moved.dtype) == (pixels.shape, np.uint8)


def test_each_round_and_client_has_changes_of_its_own_in_any_order(rows):
    made = bench(rows, random_crop=2, random_flip=True)
    first = jobs(made)
    backwards = jobs(bench(rows, random_crop=2, random_flip=True), CLIENTS[::-1])
    alone = jobs(bench(rows, random_crop=2, random_flip=True), ["1"])
    for name in CLIENTS:
        clean = made.data(name).train
        changed = first[name].examples
        assert_array_equal(changed.features[PIXELS], backwards[name].examples.features[PIXELS])
        assert_array_equal(changed.labels, clean.labels)
        assert (changed.features[PIXELS] != clean.features[PIXELS]).any()
    assert_array_equal(first["1"].examples.features[PIXELS], alone["1"].examples.features[PIXELS])
    later = jobs(made, round_=2)["1"].examples.features[PIXELS]
    assert (later != first["1"].examples.features[PIXELS]).any()


def test_a_cohort_and_one_by_one_train_on_the_same_images(rows):
    made = bench(rows, random_crop=2, random_flip=True)
    found = [*jobs(made).values()]
    assert why_not(found[0], made.model, made.task) is None
    alone = OneByOne(made.model, made.task)(found)
    for one, other in zip(alone, OneByOne(made.model, made.task)(found[::-1])[::-1], strict=True):
        for name, values in one.values.items():
            assert_array_equal(other.values[name], values)
    plain = OneByOne(made.model, made.task)([*jobs(bench(rows)).values()])
    for one, other, clean in zip(alone, Cohort(made.model, made.task, 3)(found), plain, strict=True):
        for name, values in one.values.items():
            assert_allclose(other.values[name], values, rtol=0, atol=5e-5, err_msg=name)
        assert any((clean.values[name] != values).any() for name, values in one.values.items())


def test_what_is_measured_is_never_changed(rows):
    made, plain = bench(rows, random_crop=2, random_flip=True), bench(rows)
    for name in CLIENTS:
        client = ClientModel(name, made, None)
        assert_array_equal(client.held_out.features[PIXELS], plain.data(name).test.features[PIXELS])
        own = client.own(1, OwnModel(made.initial, {}), {})
        assert own.examples is made.data(name).train
    assert jobs(plain)["0"].examples is plain.data("0").train


def test_a_teacher_is_asked_about_the_images_that_its_pupil_is_trained_on(rows):
    made = bench(rows, random_flip=True)
    trained = frozenset(made.model.layout.names)
    local = ClientModel("0", made, None).local(1, trained, made.initial)
    lesson = Distillation().lesson(local, made.initial)
    teacher = next(lesson)
    (outcome,) = OneByOne(made.model, made.task)([teacher])
    assert lesson.send(outcome).examples is teacher.asked[0]
