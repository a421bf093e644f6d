"""Classes by their names: a dual encoder as a classifier of images (zero-shot classification,
arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from fedsa_lora.tasks.heads import Head, assign_head
from fedsa_lora.tasks.towers import PROJECTIONS, tower

HEAD = "classifier"
Tokens: TypeAlias = "Mapping[str, torch.Tensor]"  # (templates * classes, length), template by template
_State: TypeAlias = "tuple[tuple[int, int], ...]"


class PromptClassifier:
    """The forward function of a dual encoder that answers images with logits of classes.

    A logit is the cosine of an image's embedding and that of a class, times the model's ``logit_scale``. The
    embedding of a class is the mean over its prompts of their embeddings, each of length 1. It is computed
    once and kept for as long as no value of the text tower changes; where that tower is trained, it is
    computed in each step.
    """

    def __init__(self, model: Any, prompts: Tokens, classes: int) -> None:
        self.model, self.prompts, self.classes = model, prompts, classes
        self._kept: tuple[_State, torch.Tensor] | None = None

    def __call__(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits (batch, classes) of images (batch, channels, height, width), and their mean cross-entropy
        where there are labels (batch,)."""
        images = functional.normalize(embeddings(self.model, pixel_values), dim=-1)
        logits = self.model.logit_scale.exp() * self.by_class(images)
        loss = None if labels is None else functional.cross_entropy(logits.float(), labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)

    def by_class(self, images: torch.Tensor) -> torch.Tensor:
        """The cosines (batch, classes) of embeddings of length 1 (batch, width)."""
        return images @ self.class_embeddings().to(images.dtype).T

    def class_embeddings(self) -> torch.Tensor:
        """The embeddings of the classes (classes, width), of length 1."""
        parts = [tower(self.model, "text"), getattr(self.model, PROJECTIONS["text"])]
        values = [parameter for part in parts for parameter in part.parameters()]
        if torch.is_grad_enabled() and any(value.requires_grad for value in values):
            return self._computed()
        state = tuple((value.data_ptr(), value._version) for value in values)
        if self._kept is None or self._kept[0] != state:
            with torch.no_grad(), _evaluating(parts[0]):
                self._kept = state, self._computed()
        return self._kept[1]

    def _computed(self) -> torch.Tensor:
        device = self.model.logit_scale.device
        tokens = {name: value.to(device) for name, value in self.prompts.items()}
        texts = functional.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)
        mean = texts.reshape(-1, self.classes, texts.shape[-1]).mean(dim=0)
        return functional.normalize(mean, dim=-1)


class LinearClassifier(PromptClassifier):
    """The same with a trained linear layer on the embedding of an image, which starts from the embeddings of
    the classes, so as the classifier by prompts (arXiv:2109.01903, section 3)."""

    def by_class(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.model.classifier(images)
        return scores


def embeddings(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """The embeddings (batch, width) of images in the space that they have in common with texts."""
    found: torch.Tensor = model.get_image_features(pixel_values=pixel_values).pooler_output
    return found


def classifying(model: Any, prompts: Tokens, classes: int, *, linear: bool) -> Any:
    """The same dual encoder, which answers images with logits of classes; with a head if ``linear``."""
    if not linear:
        model.forward = PromptClassifier(model, prompts, classes)
        return model
    model.forward = LinearClassifier(model, prompts, classes)
    weight = model.text_projection.weight
    model.classifier = nn.Linear(weight.shape[0], classes, bias=False, device=weight.device)
    if not weight.is_meta:
        with torch.no_grad():
            model.classifier.weight.copy_(model.forward.class_embeddings())
    assign_head(model, Head((HEAD,), kept=frozenset({f"{HEAD}.weight"})))
    return model


def classifier_of(model: Any) -> PromptClassifier | None:
    """The classifier that ``classifying`` made of a model, without adapters; None of another model."""
    forward = getattr(model, "forward", None)
    return forward if isinstance(forward, PromptClassifier) else None


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Have a module compute without dropout within it."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
