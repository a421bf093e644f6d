"""Objectives that make a model forget examples and keep others.

S is the summed loss of an answer in nats, n the number of its tokens; ref marks S where the model stood when
the phase began. Formulas and defaults are those of OpenUnlearning (arXiv:2506.12618), whose repository is
github.com/locuslab/open-unlearning.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import logsigmoid

from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import Objective, by_length, in_order
from fedsa_lora.seeds import generator
from fedsa_lora.tasks.heads import unwrapped
from fedsa_lora.tasks.task import Batch, Examples, Task
from fedsa_lora.tasks.token_losses import IGNORED, answer_losses, token_losses


def read_losses(
    model: AdapterModel, task: Task, examples: Examples, settings: TrainSettings
) -> NDArray[np.float32]:
    """S and n of each example, (n, 2), in eval mode."""

    def both(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return torch.stack(answer_losses(module, batch), dim=1)

    return in_order(model, task, examples, settings, both)


def read_tokens(
    model: AdapterModel, task: Task, examples: Examples, settings: TrainSettings
) -> NDArray[np.float32]:
    """The loss of each token of an answer in nats, (n, longest of all), NaN where a token has none."""
    longest = int(examples.lengths.max())

    def padded(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        losses, answered = token_losses(module, batch)
        losses = losses.masked_fill(~answered, torch.nan)
        return torch.nn.functional.pad(losses, (0, longest - losses.shape[1]), value=torch.nan)

    return in_order(model, task, examples, settings, padded)


@dataclass(frozen=True)
class HiddenStates:
    """Reads what comes out of block ``layer`` (the first is 0) at the tokens of answers, those of one example
    after the other, (tokens, d)."""

    layer: int

    def __call__(
        self, model: AdapterModel, task: Task, examples: Examples, settings: TrainSettings
    ) -> NDArray[np.float32]:
        def answered(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
            return self.of(module, batch)[batch["labels"] != IGNORED]

        ends = np.cumsum(answer_tokens(examples))
        width = int(unwrapped(model.module).config.hidden_size)
        found = np.empty((int(ends[-1]) if len(ends) else 0, width), np.float32)
        for indices, states in by_length(model, task, examples, settings, answered):
            for index, own in zip(indices, _of_each(states, examples, indices), strict=True):
                found[ends[index] - len(own) : ends[index]] = own
        return found

    def of(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The states of a batch, (batch, longest of the batch, d)."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        states: torch.Tensor = module(**inputs, output_hidden_states=True).hidden_states[self.layer + 1]
        return states


def answer_tokens(examples: Examples) -> NDArray[np.int64]:
    """The number of tokens of each answer, (n,)."""
    labels = examples.features["labels"]
    return np.array([np.count_nonzero(row != IGNORED) for row in labels], np.int64)


def _of_each(
    states: NDArray[np.float32], examples: Examples, indices: NDArray[np.int64]
) -> list[NDArray[np.float32]]:
    """The states (tokens, d) of some examples, apart."""
    return np.split(states, np.cumsum(answer_tokens(examples.at(indices)))[:-1])


@dataclass(frozen=True)
class Forgetting(Objective):
    """gamma times a loss over a batch that is to be forgotten, and alpha times one over as many examples that
    are ``kept``, drawn from ``seed`` and ``key``; with alpha 0 none are.

    The loss over what is kept is the task's own, the mean over all answer tokens, unless a class says
    otherwise.
    """

    kept: NDArray[np.int64]
    gamma: float
    alpha: float
    seed: int
    key: tuple[str | int, ...]

    @cached_property
    def rng(self) -> np.random.Generator:
        return generator(self.seed, "keep", *self.key)

    def at(self, indices: NDArray[np.int64]) -> Iterator[torch.Tensor]:
        for loss in super().at(indices):
            yield self.gamma * loss
        if self.alpha and len(self.kept):
            drawn = self.rng.choice(self.kept, len(indices), replace=len(self.kept) < len(indices))
            for loss in self.keeping.at(drawn):
                yield self.alpha * loss

    def terms(self, indices: NDArray[np.int64]) -> int:
        """Examples, of which each is a term of the mean."""
        return len(indices)

    @property
    def keeping(self) -> Objective:
        """The objective over examples that are kept: the task's own loss."""
        return Objective(self.model, self.task, self.examples, self.settings)

    @abstractmethod
    def loss(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """The loss over examples that are to be forgotten, a scalar."""

    def answers(self, indices: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """S and n of each of the examples, (batch,) each."""
        with self.autocast():
            return answer_losses(self.model.module, self.batch(indices))


@dataclass(frozen=True)
class Ascent(Forgetting):
    """Minus the mean loss over answer tokens (GradAscent; with alpha > 0 GradDiff, arXiv:2203.12817)."""

    def loss(self, indices: NDArray[np.int64]) -> torch.Tensor:
        losses, tokens = self.answers(indices)
        return -losses.sum() / tokens.sum()

    def terms(self, indices: NDArray[np.int64]) -> int:
        return self.keeping.terms(indices)


@dataclass(frozen=True)
class NegativePreference(Forgetting):
    """-2/beta mean log sigmoid(beta (S - S_ref)): NPO, arXiv:2404.05868. ``reference`` is S_ref, (n,)."""

    beta: float
    reference: NDArray[np.float32]

    def loss(self, indices: NDArray[np.int64]) -> torch.Tensor:
        losses, _ = self.answers(indices)
        reference = torch.from_numpy(self.reference[indices]).to(losses.device)
        return -2 / self.beta * logsigmoid(self.beta * (losses - reference)).mean()


@dataclass(frozen=True)
class SimplePreference(Forgetting):
    """-2/beta mean log sigmoid(beta (S/n - delta)): SimNPO, arXiv:2410.07163."""

    beta: float
    delta: float

    def loss(self, indices: NDArray[np.int64]) -> torch.Tensor:
        losses, tokens = self.answers(indices)
        return -2 / self.beta * logsigmoid(self.beta * (losses / tokens - self.delta)).mean()


@dataclass(frozen=True)
class DirectPreference(Forgetting):
    """-2/beta mean log sigmoid(beta ((S_ref - S) of a refusal - (S_ref - S) of the answer)): DPO,
    arXiv:2305.18290. ``refused`` are the same examples with a refusal for an answer; the references are (n,).
    """

    beta: float
    refused: Examples
    reference: NDArray[np.float32]
    of_refusal: NDArray[np.float32]

    def loss(self, indices: NDArray[np.int64]) -> torch.Tensor:
        lost, _ = self.answers(indices)
        won, _ = replace(self, examples=self.refused).answers(indices)
        gained = torch.from_numpy(self.of_refusal[indices]).to(lost.device) - won
        given_up = torch.from_numpy(self.reference[indices]).to(lost.device) - lost
        return -2 / self.beta * logsigmoid(self.beta * (gained - given_up)).mean()


@dataclass(frozen=True)
class Hidden(Objective):
    """The mean of (h - goal)^2 over what ``states`` reads of answer tokens, first over those of an example.

    ``goal`` is, for some examples, (d,) for all or (tokens, d) for each token of their answers.
    """

    states: HiddenStates
    goal: Callable[[NDArray[np.int64]], NDArray[np.float32]]

    def loss(self, indices: NDArray[np.int64]) -> torch.Tensor:
        batch = self.batch(indices)
        with self.autocast():
            states = self.states.of(self.model.module, batch).float()
        answered = batch["labels"] != IGNORED
        goal = torch.zeros_like(states)
        goal[answered] = torch.from_numpy(self.goal(indices)).to(states)
        by_token = (states - goal).square().mean(dim=2) * answered
        return (by_token.sum(dim=1) / answered.sum(dim=1)).mean()

    def terms(self, indices: NDArray[np.int64]) -> int:
        return len(indices)


@dataclass(frozen=True)
class Misdirection(Forgetting):
    """RMU, arXiv:2403.03218: hidden states are led to c u, those of what is kept to where they were.

    u has values drawn uniformly from 0 to 1 and norm 1, and is the same for all clients; c is ``steering``.
    ``reference`` are the states of the examples that are ``kept``, in their order, when the phase began,
    (tokens, d).
    """

    states: HiddenStates
    steering: float
    reference: NDArray[np.float32]

    def loss(self, indices: NDArray[np.int64]) -> torch.Tensor:
        return self._hidden(lambda _: self.control).loss(indices)

    @property
    def keeping(self) -> Objective:
        return self._hidden(self.before)

    def before(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The states of kept examples when the phase began, (tokens, d)."""
        return np.concatenate([self._before[index] for index in indices])

    @cached_property
    def control(self) -> NDArray[np.float32]:
        """c u, (d,)."""
        u = generator(self.seed, "control").random(self.reference.shape[1])
        return np.asarray(self.steering * u / np.linalg.norm(u), np.float32)

    @cached_property
    def _before(self) -> dict[int, NDArray[np.float32]]:
        each = _of_each(self.reference, self.examples, self.kept)
        return dict(zip(self.kept.tolist(), each, strict=True))

    def _hidden(self, goal: Callable[[NDArray[np.int64]], NDArray[np.float32]]) -> Hidden:
        return Hidden(self.model, self.task, self.examples, self.settings, self.states, goal)
