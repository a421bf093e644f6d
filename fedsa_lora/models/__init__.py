"""Architectures that transformers has not. Importing this package makes its Auto classes know them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedsa_lora.models import efficientnet_lite

# Names of a model's parameters by those that published files of its weights have, by model type.
PUBLISHED: Mapping[str, Callable[[str], str]] = {
    efficientnet_lite.EfficientNetLiteConfig.model_type: efficientnet_lite.own_name
}
