"""Gradient checkpointing: a layer keeps its input alone, and is computed again for its gradient."""

from __future__ import annotations

import warnings

from transformers import PreTrainedModel

from fedsa_lora.errors import ModelError
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.masking import first_and_again
from fedsa_lora.tasks.heads import unwrapped


def checkpoint_layers(model: AdapterModel) -> None:
    """Have a model in training keep the input of each of its layers and nothing within (arXiv:1604.06174).
    Dropout is the same both times. Raises ModelError for a model whose layers cannot be computed so."""
    backbone = unwrapped(model.module)
    if not isinstance(backbone, PreTrainedModel) or not backbone.supports_gradient_checkpointing:
        raise ModelError(
            f"train.gradient_checkpointing=true: {type(backbone).__name__} has no layers that support it: "
            f"set it to false; a smaller train.batch_size with "
            "train.accumulate saves memory as well",
            sent="the model has no gradient checkpointing",
            key="train.gradient_checkpointing",
        )
    recompute_layers(backbone)


def recompute_layers(model: PreTrainedModel) -> None:
    """Compute the layers of a model of transformers again for their gradients, wherever it is in training
    mode."""
    options = {"use_reentrant": False, "context_fn": first_and_again}
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # transformers renames it
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.disable_input_require_grads()  # which reentrant checkpoints need


def keep_layers(model: PreTrainedModel) -> None:
    """Undo ``recompute_layers``: keep what is within the layers of a model for their gradients."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model.gradient_checkpointing_disable()
