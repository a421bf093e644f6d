"""Feature shift is one change of all images of a client, and another for each client."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pictures import drawn, encoded, task, vit, write_parquet
from PIL import Image

from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError
from fedsa_lora.tasks.backdoor import Backdoor
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.shift import KINDS, Shift, shifts_of

PIXELS = "pixel_values"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The same 12 colour pictures as train and as test rows."""
    pixels, labels = drawn(12, side=16)
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "test"):
        write_parquet(folder / f"{split}.parquet", [encoded(each) for each in pixels], labels)
    return str(folder)


def shifted(rows: str, shift: str, **fields):
    return task(rows, vit(image_size=16), test_split="test", shift=shift, clients=3, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_test_images_of_a_client_are_shifted_alike_and_those_of_others_otherwise(rows, kind):
    made = shifted(rows, kind)
    every = np.arange(12)
    looks = {}
    for client in ("0", "1", "2"):
        parts = (made.data.train, made.data.test)
        found = [made.encode(made._inputs(client, part, every), every).features[PIXELS] for part in parts]
        assert_array_equal(*found)
        looks[client] = found[0]
    for one, other in itertools.combinations(looks.values(), 2):
        assert (one != other).any(axis=(1, 2, 3)).all()
    data, held = made.load_client("1"), made.split.clients["1"]
    assert_array_equal(data.train.features[PIXELS], looks["1"][held.train])
    assert_array_equal(data.test.features[PIXELS], looks["1"][held.test])
    again = shifted(rows, kind).load_client("1").train.features[PIXELS]
    assert_array_equal(again, data.train.features[PIXELS])
    assert (again.dtype, again.shape[1:]) == (np.uint8, (3, 16, 16))


def test_a_shift_goes_as_far_as_its_level():
    picture = Image.fromarray(np.full((16, 16, 3), (200, 100, 50), np.uint8))
    edge = Image.fromarray(np.tile(np.repeat(np.array([0, 200], np.uint8), 8), (16, 1)))

    def level(kind: str, level: float, picture=picture) -> np.ndarray:
        return np.asarray(Shift(kind, level, 255)(picture))

    for kind in ("brightness", "rotation", "hue"):
        assert_array_equal(level(kind, 0.0)[4:12, 4:12], np.asarray(picture)[4:12, 4:12])
    assert level("brightness", 1.0)[0, 0].tolist() == [255, 250, 125]
    assert level("brightness", -1.0)[0, 0].tolist() == [80, 40, 20]
    assert_array_equal(level("blur", -1.0, edge), np.asarray(edge))
    assert 0 < level("blur", 1.0, edge)[8, 7] < 200
    red, green, blue = level("hue", 1.0)[0, 0].astype(int)
    assert green > blue > red  # a third of the circle from orange
    assert Shift("brightness", 1.0, 16)(Image.fromarray(np.full((8, 8), 9, np.uint8))).getextrema() == (
        16,
        16,
    )


@pytest.mark.parametrize(("clients", "kinds"), [(1, KINDS), (4, KINDS), (11, KINDS), (10, ("blur",))])
def test_clients_take_the_kinds_in_turn_at_levels_of_their_own(clients, kinds):
    found = shifts_of(clients, kinds, 0.5, 255, seed=3)
    assert len(set(found)) == len(found) == clients
    counts = [sum(shift.kind == kind for shift in found) for kind in kinds]
    assert max(counts) - min(counts) <= 1
    assert max(abs(shift.level) for shift in found) == 0.5
    assert clients == 1 or shifts_of(clients, kinds, 0.5, 255, seed=4) != found


def test_triggers_are_put_on_shifted_images(rows):
    attack = Backdoor(clients=[0], target=0)
    data = shifted(rows, "brightness", attack=attack).load_client("1")
    pixels = data.attacked.features[PIXELS]
    other = data.test.features[PIXELS][data.test.labels != 0]
    assert (pixels[:, :, -2:, -2:] == 255).all()
    assert_array_equal(pixels[:, :, :-2], other[:, :, :-2])


def test_colours_that_are_not_there_cannot_be_shifted(rows):
    grey = task(rows, vit(num_channels=1, image_size=16), shift="hue", clients=3)
    with pytest.raises(ConfigError, match=r"task.shift=hue: the images are grey, or the model reads one"):
        grey.load_client("0")
    mixed = task(rows, vit(num_channels=1, image_size=16), shift="mixed", clients=3)
    assert {mixed.shift_of(client).kind for client in "012"} == {"brightness", "blur", "rotation"}
    enlarged = load(["task=digits", "task.size=32", "model=vit_small", "regime=feature_shift"]).task
    assert "hue" not in {enlarged.shift_of(client).kind for client in "0123456789"}
    own = PartitionSettings(partitioner={})
    with pytest.raises(ConfigError, match=r"every node has its own data; expected shift=none"):
        task(rows, partition=own, class_names=["cat", "dog"], shift="blur")


def test_the_regime_shifts_the_digits_and_the_plan_says_how():
    found = load(["task=digits", "model=tiny_vit", "regime=feature_shift", "federation.clients=3"]).task
    assert found.describe().notes[-1].startswith("feature shift: client 0 ")
    pixels = found.load_client("0").train.features[PIXELS]
    assert pixels.max() <= 16
    with pytest.raises(ConfigError, match=r"task.shift: no such key"):
        load(["task=snips", "regime=feature_shift"])
