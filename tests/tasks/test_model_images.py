"""Images are as large and as bright as their model was trained with."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pictures import drawn, encoded, task, tensors, vit, write_parquet
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from fedsa_lora.errors import ConfigError, DataError, ModelError
from fedsa_lora.tasks.image import ImageTask
from fedsa_lora.tasks.inspection import inspect_task
from fedsa_lora.tasks.model_images import ModelImages, images_of
from fedsa_lora.tasks.model_settings import ModelSettings


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a config and the preprocessor config that is given; nothing of it is trained."""

    def make(config: dict, **preprocessor):
        AutoConfig.for_model(**vit().config | config).save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        return replace(vit(), path=str(tmp_path), config={})

    return make


def test_pixels_are_those_of_transformers_own_processor(tmp_path, checkpoint):
    stored = {
        "size": {"height": 8, "width": 8},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    model = checkpoint({}, **stored)
    pixels, labels = drawn(3, side=14)
    source = write_parquet(tmp_path / "rows.parquet", [encoded(each) for each in pixels], labels)
    found = task(source, model)
    batch = found.collate(found.encode(found.data.train.inputs, labels), np.arange(3))
    processor = ViTImageProcessorPil(**stored)
    expected = processor([Image.fromarray(each) for each in pixels], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(batch["pixel_values"].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "saved",
    [
        ModelImages((12, 8), 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resample=3),
        ModelImages((8, 8), 1, (0.4,), (0.2,)),
        ModelImages(None, 3, (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_what_is_saved_beside_a_model_is_read_as_it_was(tmp_path, saved):
    saved.save(tmp_path)
    AutoConfig.for_model("resnet", num_channels=saved.channels).save_pretrained(tmp_path)
    assert images_of(ModelSettings(path=str(tmp_path))) == saved


def test_an_export_is_read_at_the_size_that_its_run_read(tmp_path):
    saved = ModelImages((32, 32), 3, (0.5,) * 3, (0.5,) * 3)
    AutoConfig.for_model("efficientnet_lite", image_size=96).save_pretrained(tmp_path)
    saved.save(tmp_path)
    assert images_of(ModelSettings(path=str(tmp_path))) == saved
    given = images_of(ModelSettings(path=str(tmp_path), config={"image_size": 64}))
    assert given == replace(saved, size=(64, 64))


@pytest.mark.parametrize("channels", [1, 3])
def test_transformers_reads_what_is_saved_beside_a_model_alike(tmp_path, channels):
    saved = ModelImages((8, 8), channels, (0.4,) * channels, (0.2,) * channels)
    saved.save(tmp_path)
    pixels = drawn(2)[0][..., :channels]
    found = AutoImageProcessor.from_pretrained(tmp_path)([*pixels], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(found, saved.normalised(pixels.transpose(0, 3, 1, 2), 255))


def test_what_the_config_of_the_model_says_of_sizes_comes_before_the_preprocessor(checkpoint):
    model = checkpoint({"image_size": 12, "num_channels": 1}, size=224, image_mean=0.4, image_std=[0.2])
    assert images_of(model) == ModelImages((12, 12), 1, (0.4,), (0.2,))
    stated = images_of(checkpoint({"image_mean": [0.3], "image_std": [0.7]}, image_std=0.6))
    assert (stated.mean, stated.std) == ((0.3,) * 3, (0.6,) * 3)
    model = checkpoint({"image_size": 12, "num_channels": 1})
    given = images_of(model, size=[8, 4], mean=0.1, std=[0.3])
    assert given == ModelImages((8, 4), 1, (0.1,), (0.3,))


@pytest.mark.parametrize(
    ("stored", "mean", "std"),
    [
        ({}, (0.5,) * 3, (0.5,) * 3),
        ({"do_normalize": False, "image_mean": 0.9}, (0.0,) * 3, (1.0,) * 3),
        # (x - 127) / 128, as EfficientNet-Lite reads its pixels from 0 to 255
        ({"do_rescale": False, "image_mean": 127, "image_std": 128}, (127 / 255,) * 3, (128 / 255,) * 3),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1, "image_std": 1}, (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_a_preprocessor_counts_in_units_of_its_own(checkpoint, stored, mean, std):
    found = images_of(checkpoint({}, **stored))
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(std)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"size": [8, 8, 3]}, r"size of images is \[8, 8, 3\]: expected a number of pixels"),
        ({"size": 0}, "size of images is 0: expected"),
        ({"mean": [0.5, 0.5]}, "2 values of mean or deviation for images of 3 channels; expected one, or 3"),
        ({"std": 0.0}, "a deviation of pixels is 0: expected more than 0; correct task.std"),
    ],
)
def test_what_no_model_reads_is_refused(fields, fault):
    with pytest.raises(ConfigError, match=fault):
        images_of(vit(), **fields)
    with pytest.raises(ConfigError, match="images of 4 channels: expected 1 or 3"):
        images_of(vit(num_channels=4))


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ({"mean": 127}, "task.mean=127: expected values from 0 to 1"),
        ({"std": [128, 128, 128]}, "task.std=.*divide those that count to 255"),
        ({"size": 100_000}, "a number of pixels up to 4,096"),
    ],
)
def test_what_counts_to_255_and_what_fills_the_memory_is_refused(field, fault):
    with pytest.raises(ConfigError, match=fault):
        images_of(vit(), **field)


def test_a_damaged_preprocessor_config_is_named(checkpoint, tmp_path):
    model = checkpoint({})
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"preprocessor_config.json is not JSON"):
        images_of(model)


def test_a_size_that_the_model_does_not_read_is_refused_before_a_run(tmp_path):
    pixels, labels = drawn(6, side=10)
    source = write_parquet(tmp_path / "rows.parquet", [encoded(each) for each in pixels], labels)
    said = inspect_task(task(source))[-1]
    assert said == "images are read as 8 x 8 in 3 channels, less 0.5 and divided by 0.5"
    with pytest.raises(ModelError, match=r"cannot read the batches of this task .*\(2, 3, 10, 10\)"):
        inspect_task(task(source, size=10))
    digits = ImageTask(model=vit(image_size=32, num_channels=1), size=32)
    assert inspect_task(digits)
    assert tensors(digits)[0].shape == (1797, 1, 32, 32)


def test_a_model_of_any_size_takes_images_of_one_size(tmp_path):
    resnet = replace(vit(), config={"model_type": "resnet", "hidden_sizes": [8, 8], "depths": [1, 1]})
    small, large = drawn(3)[0], drawn(3, side=9)[0]
    images = [encoded(each) for each in (*small, *large)]
    source = write_parquet(tmp_path / "same.parquet", images[:3], [0, 1, 2])
    assert tensors(task(source, resnet))[0].shape == (3, 3, 8, 8)
    source = write_parquet(tmp_path / "rows.parquet", images, [0, 1, 2] * 2)
    fault = "row 4 has 9 x 9 pixels, another has 8 x 8; set task.size"
    with pytest.raises(DataError, match=fault):
        tensors(task(source, resnet))
    assert tensors(task(source, resnet, size=8))[0].shape == (6, 3, 8, 8)


@pytest.mark.parametrize("side", [8, 28, 32])
def test_a_trigger_is_a_bright_corner_of_any_size(tmp_path, side):
    pixels, labels = drawn(3, side=side)
    source = write_parquet(tmp_path / "rows.parquet", [encoded(each) for each in pixels], labels)
    found = task(source, vit(image_size=side))
    inputs = found.data.train.inputs
    clean, marked = (
        found.encode(each, labels).features["pixel_values"] for each in (inputs, found.triggered(inputs))
    )
    corner = max(2, side // 8)
    assert (marked[:, :, -corner:, -corner:] == 255).all()
    changed = (clean != marked).any(axis=(0, 1))
    assert changed[-corner:, -corner:].any()
    changed[-corner:, -corner:] = False
    assert not changed.any()


def test_the_digits_are_marked_as_they_were():
    digits = ImageTask(model=vit(num_channels=1))
    inputs = digits.triggered(digits.data.train.inputs)
    pixels = digits.encode(inputs, digits.data.train.labels).features["pixel_values"]
    assert (pixels[:, 0, -2:, -2:] == 16).all()
