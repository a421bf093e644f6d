"""Gradient checkpointing: the same gradients from less memory."""

from dataclasses import replace

import numpy as np
import pytest
from cohort_cases import bench
from transformers import ResNetConfig, ResNetForImageClassification

from fedsa_lora.errors import ModelError
from fedsa_lora.learning import training
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.checkpointing import checkpoint_layers
from fedsa_lora.learning.cohort import Cohort
from fedsa_lora.learning.dropout import Sites
from fedsa_lora.learning.job import OneByOne, settled
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import Objective

SETTINGS = TrainSettings(lr=1e-2, head_lr=1e-2, steps=3, batch_size=6)


def apart(one, two) -> float:
    return max(float(abs(one[name] - two[name]).max()) for name in one)


def with_and_without(kind: str, **changes):
    """A bench's outcome without checkpoints and with them."""
    found = []
    for checkpointed in (False, True):
        of = bench(kind, dropout=True)
        if checkpointed:
            checkpoint_layers(of.model)
        settings = replace(SETTINGS, gradient_checkpointing=checkpointed)
        found.append(settled(*OneByOne(of.model, of.task)([of.job(0, settings, **changes)])))
    return found


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["bert", "mean", "roberta", "distilbert", "llama", "words", "vit"])
def test_values_have_the_same_bits_with_dropout(kind):
    one, two = with_and_without(kind)
    assert apart(one.values, two.values) == 0 < apart(one.values, one.start)
    assert one.report.loss == two.report.loss


def test_values_differ_by_rounding_where_a_cache_of_keys_is_left_out():
    """transformers has GPT-2 fill a cache in training too, in another order of memory."""
    one, two = with_and_without("gpt2")
    assert apart(one.values, two.values) < 1e-6


@pytest.mark.parametrize("kind", ["bert", "words"])
def test_dropout_that_torch_draws_is_the_same_both_times(kind, monkeypatch):
    """As on a GPU, where no masks are drawn."""
    monkeypatch.setattr(training, "dropout_sites", lambda *arguments: Sites())
    one, two = with_and_without(kind)
    assert apart(one.values, two.values) == 0


class TwoPasses(Objective):
    """A loss of two forward passes, the first of which is computed again after the second began."""

    def loss(self, indices):
        return super().loss(indices) + super().loss(indices[::-1].copy())


def test_a_layer_is_computed_again_with_the_masks_of_its_own_pass():
    one, two = with_and_without("words", objective=TwoPasses)
    assert apart(one.values, two.values) == 0


def test_a_cohort_goes_one_by_one():
    of = bench("bert", dropout=True)
    checkpoint_layers(of.model)
    jobs = [of.job(client, replace(SETTINGS, gradient_checkpointing=True)) for client in range(2)]
    alone = OneByOne(of.model, of.task)(jobs)
    for one, two in zip(alone, Cohort(of.model, of.task, 2)(jobs), strict=True):
        assert apart(settled(one).values, settled(two).values) == 0


def test_a_model_without_such_layers_is_named_with_a_way_out():
    config = ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], num_labels=2)
    model = AdapterModel(ResNetForImageClassification(config))
    with pytest.raises(ModelError, match=r"gradient_checkpointing=true: ResNet.* set it to false; a smaller"):
        checkpoint_layers(model)


def test_it_is_off_where_nothing_is_trained():
    of = bench("words")
    checkpoint_layers(of.model)
    job = replace(of.job(0, SETTINGS), batches=())
    before = settled(*OneByOne(of.model, of.task)([job])).values
    assert all(np.array_equal(before[name], job.values[name]) for name in before)
