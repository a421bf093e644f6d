"""Adapters on image models: their counts, and that each of them computes, learns and is exported."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

from fedsa_lora.config.compose import load
from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.tasks.backbone import build_backbone

TEN = tuple("0123456789")
# model, adapters: parameters without adapters at ten classes, adapters, values of A, values of B
COUNTS = {
    ("vit_small", "vit_fedlora"): (811_146, 12, 18_432, 12_288),
    ("vit_small", "vit_ranks"): (811_146, 12, 21_504, 14_336),
    ("resnet_small", "default"): (177_178, 14, 29_184, 4_352),
    ("resnet_small", "convolutions"): (177_178, 14, 29_184, 4_352),
    ("efficientnet_lite0", "default"): (3_371_008 + 12_810, 32, 86_144, 96_128),
}
MODELS = [
    ("vit_small", "vit_fedlora"),
    ("resnet_small", "convolutions"),
    ("efficientnet_lite0", "convolutions"),
]


def adapted(model: str, lora: str, classes=TEN, *, empty: bool = False) -> AdapterModel:
    """The model of a preset, with random weights whatever it starts from."""
    words = [f"model={model}", f"lora={lora}", "lora.dropout=0", "++model.pretrained=false"]
    if model == "efficientnet_lite0":
        words.append("model.path=")  # the package of its weights need not be here
    config = load(["task=image", *words])
    backbone = build_backbone(AutoModelForImageClassification, config.model, classes, seed=0, empty=empty)
    return AdapterModel(attach(backbone, config.lora))


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("names", "expected"), COUNTS.items(), ids=lambda value: str(value[0]))
def test_the_presets_have_the_parameters_that_their_files_say(names, expected):
    counts = (model := adapted(*names, empty=True)).counts()
    assert (counts["base"] + counts["head"], len(model.scales), counts["A"], counts["B"]) == expected


def test_a_head_of_five_classes_is_645_parameters_smaller():
    assert sum(adapted("vit_small", "vit_fedlora", TEN[:5], empty=True).counts().values()) == 810_501 + 30_720


def test_the_vision_transformer_is_adapted_at_two_places_of_every_block():
    expected = {f"vit.layers.{n}.{name}" for n in range(6) for name in ("attention.o_proj", "mlp.fc2")}
    assert set(adapted("vit_small", "vit_fedlora", empty=True).scales) == expected


@pytest.mark.parametrize("names", MODELS)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_every_adapter_moves_the_output_and_gets_a_gradient(names, training):
    model = adapted(*names)
    start = initial_state(model.layout, 0)
    pixels = images()

    def output(state) -> torch.Tensor:
        model.write(state)
        model.module.train(training)
        torch.manual_seed(0)  # dropout of the model itself
        logits: torch.Tensor = model.module(pixel_values=pixels).logits
        return logits

    plain = output(start).detach()
    sides = [spec.name for spec in model.layout if spec.role == "B"]
    assert len(sides) == len(model.scales)
    drawn = {
        name: np.random.default_rng(n).normal(0, 0.2, start[name].shape).astype(np.float32)
        for n, name in enumerate(sides)
    }
    for name in sides:
        assert not torch.equal(output(start | {name: drawn[name]}).detach(), plain), name
    factors = frozenset(spec.name for spec in model.layout if spec.role in ("A", "B"))
    model.set_trainable(factors)
    torch.nn.functional.cross_entropy(output(start | drawn), torch.tensor([1, 7])).backward()
    for name in factors:
        gradient = model.parameter(name).grad
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        assert math.isfinite(gradient.sum()), name
