"""The two towers of a dual encoder, a model that puts images and texts into one space (CLIP,
arXiv:2103.00020)."""

from __future__ import annotations

from typing import Any

TOWERS = ("vision", "text")
TYPES = ("clip", "vision-text-dual-encoder")  # of models that are dual encoders
PROJECTIONS = {"vision": "visual_projection", "text": "text_projection"}  # behind the towers


def is_dual_encoder(model: Any) -> bool:
    """True for a model of transformers that has a tower for images and one for texts."""
    return getattr(getattr(model, "config", None), "model_type", None) in TYPES


def tower(model: Any, name: str) -> Any:
    """The tower "vision" or "text" of a dual encoder, without its projection."""
    return getattr(model, f"{name}_model")
