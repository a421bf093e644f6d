"""Importance of each tensor to a client's training, read off the gradients that it computes anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedsa_lora.errors import TrainingError

Tensors = list[torch.Tensor]  # of the shapes of the tensors that are scored
Sums = Sequence[torch.Tensor]  # float64 scalars, one for each of them


class Parameters(Protocol):
    """Tensors by name, those that are trained with their gradients."""

    def parameter(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class Scoring:
    """A score, and the names of the tensors that it is asked of.

    ``gradient`` mean |g|; ``fisher`` mean g^2, the diagonal empirical Fisher of the gradients of batches;
    ``taylor`` mean |theta g|, what setting a value to zero would change in the loss, to first order
    (arXiv:1906.10771).
    """

    score: Literal["gradient", "fisher", "taylor"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """``sums`` (steps, tensors) of the values' scores by step; ``sizes`` (tensors,), how many values each
    has. One training's ``+`` another's are those of both."""

    sums: NDArray[np.float64]
    sizes: NDArray[np.float64]

    def __add__(self, other: Scores) -> Scores:
        return Scores(np.concatenate([self.sums, other.sums]), self.sizes)

    def means(self) -> list[float]:
        """Means over values, then over steps: finite and at least 0, in the order of the names; 0 for a
        tensor that has no gradient.

        A step whose gradients are not all finite does not count: the scaler of fp16 takes no such step.
        Raises TrainingError when no step counts.
        """
        if not len(self.sums):
            raise TrainingError(
                "importance needs at least two local steps, as the first is not scored: set train.steps to 2 "
                "or more, or train.epochs"
            )
        finite = self.sums[np.isfinite(self.sums).all(axis=1)]
        if not len(finite):
            raise TrainingError(
                f"importance cannot be computed: gradients were not finite in any of {len(self.sums)} "
                f"steps: take more "
                "steps, lower train.lr, or use train.precision=bf16 or fp32"
            )
        means: list[float] = (finite.mean(axis=0) / self.sizes).tolist()
        return means


class ImportanceMeter:
    """Takes scores of tensors from the steps of one training. No pass is made for them; sums are in
    float64."""

    def __init__(self, scoring: Scoring) -> None:
        self._sums = _SUMS[scoring.score]
        self._names = scoring.names
        self._sizes = np.ones(len(self._names))
        self._steps: list[tuple[list[int], torch.Tensor]] = []  # left on the device: nothing waits for them

    @torch.no_grad()
    def observe(self, model: Parameters) -> None:
        """Take in the gradients of one step: before clipping, and of the task's loss alone."""
        at, parameters, gradients = [], [], []
        for i, name in enumerate(self._names):
            parameter = model.parameter(name)
            self._sizes[i] = parameter.numel()
            if parameter.grad is not None:
                at.append(i)
                parameters.append(parameter.detach())
                gradients.append(parameter.grad)
        sums = torch.stack(list(self._sums(parameters, gradients))) if at else torch.zeros(0)
        self._steps.append((at, sums))

    def scores(self) -> Scores:
        """Scores of the steps so far."""
        sums: NDArray[np.float64] = np.zeros((len(self._steps), len(self._names)))
        for row, (at, values) in zip(sums, self._steps, strict=True):
            row[at] = values.cpu().numpy()
        return Scores(sums, self._sizes)


def _gradient(_: Tensors, gradients: Tensors) -> Sums:
    return torch._foreach_norm(gradients, 1, dtype=torch.float64)


def _fisher(_: Tensors, gradients: Tensors) -> Sums:
    return [norm.square() for norm in torch._foreach_norm(gradients, 2, dtype=torch.float64)]


def _taylor(parameters: Tensors, gradients: Tensors) -> Sums:
    return torch._foreach_norm(torch._foreach_mul(parameters, gradients), 1, dtype=torch.float64)


_SUMS: dict[str, Callable[[Tensors, Tensors], Sums]] = {
    "gradient": _gradient,
    "fisher": _fisher,
    "taylor": _taylor,
}
