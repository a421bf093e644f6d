"""The module below an adapter, as it was before LoRA: what an adapter that is loaded must be of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Base:
    """A base: its ``path`` or name, the class of its ``architecture``, its number of ``parameters``, and
    digests of the names and shapes of its tensors and of its ``weights``, by which it is known again."""

    path: str
    architecture: str
    parameters: int
    shapes: str
    weights: str

    @classmethod
    def of(cls, module: nn.Module, whole: Sequence[str], path: str = "") -> Base:
        """The base that a module is before it gets LoRA, and parts of it are trained ``whole``."""
        values = dict(module.named_parameters())
        return cls(
            path=path or _path_of(module),
            architecture=type(module).__name__,
            parameters=sum(value.numel() for value in values.values()),
            shapes=_digest(
                json.dumps([[name, list(value.shape)] for name, value in values.items()]).encode()
            ),
            weights=_weights(module, whole),
        )

    def difference(self, other: Base) -> str:
        """The reason why an adapter over one is not one over the other; empty where there is none. A copy at
        another path is the same base."""
        if self.shapes != other.shapes:
            return (
                f"its base is {self._words()}, and this one {other._words()}: their tensors have other names "
                "or shapes"
            )
        if self.weights != other.weights:
            return f"its base is {self._words()}, and this one {other._words()}: their weights differ"
        return ""

    def _words(self) -> str:
        return f"{self.path or self.architecture} ({self.architecture}, {self.parameters:,} parameters)"


def _weights(module: nn.Module, whole: Sequence[str]) -> str:
    """A digest of the values but those of parts that are trained ``whole``, in bfloat16, in which a model
    that is held in it and one that is held in float32 are the same; empty on the meta device."""
    found = hashlib.sha256()
    for name, value in module.named_parameters():
        if any(name.startswith(f"{part}.") for part in whole):
            continue
        if value.is_meta:
            return ""
        found.update(
            value.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
        )
    return found.hexdigest()


def _path_of(module: nn.Module) -> str:
    """The path that a model of transformers in a module was loaded from; empty where none was."""
    models = (part for part in module.modules() if isinstance(part, PreTrainedModel))
    return next((str(model.name_or_path) for model in models if model.name_or_path), "")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
