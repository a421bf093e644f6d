"""Architectures that transformers has not. Importing this package makes its Auto classes know them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedsa_lora.models.efficientnet_lite import EfficientNetLiteConfig, own_name
from fedsa_lora.models.sentence_bert import SentenceBertConfig

OWN = frozenset({EfficientNetLiteConfig.model_type, SentenceBertConfig.model_type})
# Of a model type: the name of a parameter by the one in published files of its weights.
PUBLISHED: Mapping[str, Callable[[str], str]] = {EfficientNetLiteConfig.model_type: own_name}
