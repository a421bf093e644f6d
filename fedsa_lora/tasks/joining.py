"""Joins two pretrained models into a dual encoder, by a projection that was trained for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fedsa_lora.models.efficientnet_lite import (
    EfficientNetLiteConfig,
    EfficientNetLiteForImageClassification,
)
from fedsa_lora.models.sentence_bert import SentenceBertModel
from fedsa_lora.tasks.checkpoint import quiet, state_dict
from fedsa_lora.tasks.imported import Joined
from fedsa_lora.tasks.model_settings import ModelSettings, resolve

PROJECTION = "projection.safetensors"
VISUAL, MEAN, SCALE = "visual_projection.weight", "mean_direction", "logit_scale"  # the tensors in it
OUTPUTS = 1000  # of the classifier of images: the classes of ImageNet-1k


def image_classifier(path: str, size: int) -> EfficientNetLiteForImageClassification:
    """EfficientNet-Lite from a file of its published weights, for images of ``size`` pixels."""
    config = EfficientNetLiteConfig(image_size=size, num_labels=OUTPUTS)
    file = Path(resolve(path))
    with quiet():
        model: EfficientNetLiteForImageClassification = (
            EfficientNetLiteForImageClassification.from_pretrained(
                None, config=config, state_dict=state_dict(file, config)
            )
        )
    return model


def sentence_encoder(path: str) -> SentenceBertModel:
    """A BERT that was trained with mean pooling."""
    with quiet():
        model: SentenceBertModel = SentenceBertModel.from_pretrained(resolve(path))
    model.config.model_type = SentenceBertModel.config_class.model_type  # a checkpoint's own says bert
    return model


def without_mean(direction: torch.Tensor) -> torch.Tensor:
    """The projection (width, width) that takes off what all texts have in common, the ``direction`` (width,)
    of the mean of many of them."""
    unit = direction / direction.norm()
    return torch.eye(len(unit)) - torch.outer(unit, unit)


def join(source: Joined) -> Any:
    """The dual encoder of a vision model, a text model and the projection between them."""
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    vision = image_classifier(source.vision, source.image_size).efficientnet_lite
    text = sentence_encoder(source.text)
    trained = load_file(Path(resolve(source.projection)) / PROJECTION)
    config = VisionTextDualEncoderConfig(
        vision_config=EfficientNetLiteConfig(image_size=source.image_size).to_dict(),
        text_config=text.config.to_dict(),
        projection_dim=trained[VISUAL].shape[0],
    )
    model = VisionTextDualEncoderModel(config, vision_model=vision, text_model=text)
    with torch.no_grad():
        model.visual_projection.weight.copy_(trained[VISUAL])
        model.text_projection.weight.copy_(without_mean(trained[MEAN]))
        model.logit_scale.copy_(trained[SCALE])
    return model.eval()


def write_joined(source: Joined, folder: Path) -> None:
    """Write the dual encoder, its tokenizer and the card of its projection."""
    from fedsa_lora.tasks.backbone import load_tokenizer

    with quiet():
        join(source).save_pretrained(folder)
    load_tokenizer(ModelSettings(path=source.text)).save_pretrained(folder)
    card = Path(resolve(source.projection)) / "README.md"
    (folder / card.name).write_bytes(card.read_bytes())
