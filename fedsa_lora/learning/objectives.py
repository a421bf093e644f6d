"""Objectives of a step other than the task's loss where the model stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fedsa_lora.learning.training import Objective
from fedsa_lora.seeds import generator


@dataclass(frozen=True)
class Ahead(Objective):
    """The loss of a batch where the model stands after a gradient step of ``alpha`` on another one, drawn
    from ``seed`` and ``key``."""

    alpha: float
    trained: frozenset[str]
    seed: int
    key: tuple[str | int, ...]

    @cached_property
    def rng(self) -> np.random.Generator:
        return generator(self.seed, "ahead", *self.key)

    def at(self, indices: NDArray[np.int64]) -> Iterator[torch.Tensor]:
        parameters = [self.model.parameter(name) for name in sorted(self.trained)]
        other = self.rng.choice(len(self.examples), min(len(indices), len(self.examples)), replace=False)
        gradients = self._gradients(other, parameters)
        before = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=self.alpha)
        yield from super().at(indices)
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)

    def _gradients(self, indices: NDArray[np.int64], parameters: list[nn.Parameter]) -> list[torch.Tensor]:
        """Those of the mean loss over ``indices``."""
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for share, part in self.parts(indices):
            found = torch.autograd.grad(share * self.loss(part), parameters)
            for gradient, of_part in zip(gradients, found, strict=True):
                gradient.add_(of_part)
        return gradients


@dataclass(frozen=True)
class Taught(Objective):
    """(1 - weight) times the task's loss, and weight T^2 KL(teacher || student) at temperature T.

    ``teacher`` (n, classes) are its logits for all examples.
    """

    teacher: torch.Tensor
    weight: float
    temperature: float

    def loss(self, indices: NDArray[np.int64]) -> torch.Tensor:
        if not self.weight:
            return super().loss(indices)
        with self.autocast():
            output = self.model.module(**self.batch(indices))
        student = functional.log_softmax(output.logits.float() / self.temperature, dim=-1)
        teacher = self.teacher[torch.from_numpy(indices)].to(student.device) / self.temperature
        apart = functional.kl_div(student, functional.softmax(teacher, dim=-1), reduction="batchmean")
        loss: torch.Tensor = (1 - self.weight) * output.loss + self.weight * self.temperature**2 * apart
        return loss
