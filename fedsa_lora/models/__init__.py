"""Architectures that transformers has not. Importing this package makes its Auto classes know them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedsa_lora.models import efficientnet_lite, sentence_bert

__all__ = ["PUBLISHED", "efficientnet_lite", "sentence_bert"]

# Of every model type here: the name of a parameter by the one in published files of its weights.
PUBLISHED: Mapping[str, Callable[[str], str]] = {
    efficientnet_lite.EfficientNetLiteConfig.model_type: efficientnet_lite.own_name
}
