"""The image task goes through the same base, and a small vision transformer learns from it."""

import numpy as np
import pytest
import torch

from fedsa_lora.errors import ConfigError
from fedsa_lora.tasks.backbone import ModelSettings
from fedsa_lora.tasks.image import ImageTask
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.task import Task

VIT = ModelSettings(
    pretrained=False,
    config={
        "model_type": "vit",
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask(model=VIT, partition=PartitionSettings(clients=5, validation_examples=20))


def test_every_digit_belongs_to_one_part_of_one_client(digits):
    task: Task = digits
    shares = task.describe().clients.values()
    assert task.labels() == tuple("0123456789")
    assert sum(share.train + share.validation + share.test for share in shares) == 1797
    assert all(share.test == pytest.approx(1797 / 25, abs=1) for share in shares)


def test_pixels_are_scaled_and_keep_their_place(digits):
    from sklearn.datasets import load_digits

    data = digits.load_client("2")
    row = digits.split.clients["2"].train[4]
    images, labels = load_digits(return_X_y=True)
    pixels = digits.collate(data.train, np.array([4]))["pixel_values"][0].numpy()
    np.testing.assert_allclose((pixels[0] + 1) * 8, images[row].reshape(8, 8))
    assert (pixels.shape, pixels.dtype) == ((1, 8, 8), np.float32)
    assert data.train.labels[4] == labels[row]


def test_batches_fit_the_model_and_training_lowers_the_loss(digits):
    data, model = digits.load_client("0"), digits.build_model(seed=0)
    batch = digits.collate(data.train, np.arange(64))
    assert batch["pixel_values"].shape == (64, 1, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = digits.loss(model, batch).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = digits.loss(model, batch)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first


def test_columns_of_the_digits_are_refused_as_they_have_none():
    with pytest.raises(ConfigError, match=r"image, group: the digits have no columns to name"):
        ImageTask(model=VIT, partition=PartitionSettings(clients=5), image="img", group="writer")


def test_a_part_may_be_empty():
    task = ImageTask(model=VIT, partition=PartitionSettings(clients=5))
    assert len(task.load_client("0").validation) == 0
