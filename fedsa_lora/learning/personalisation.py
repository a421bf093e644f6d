"""Personalisation: how a client learns its own model besides the shared values.

Each method works with any split: the global model is the client's whole model, of which the split shares
some tensors; the anchor is their values in the round's broadcast. A method yields training jobs, one after
another, and receives the outcome of each; it holds no model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Arrays, NamedArrays
from fedsa_lora.group import Group
from fedsa_lora.learning.local_round import LocalRound

if TYPE_CHECKING:
    from fedsa_lora.learning.adapters import AdapterModel
    from fedsa_lora.learning.job import Job, Outcome
    from fedsa_lora.settings import RunConfig

Lesson: TypeAlias = "Generator[Job, Outcome, Outcome]"
Training: TypeAlias = "Generator[Job, Outcome, tuple[Outcome, Arrays]]"


@dataclass(frozen=True)
class Personalisation(Group):
    """No further personalisation: a client trains and uses the global model with its local tensors."""

    beside: ClassVar[bool] = False  # whether a client keeps a personal model beside the common one
    mixes: ClassVar[bool] = False  # whether its own model computes with what the others shared besides

    @property
    def adapts(self) -> bool:
        """A client trains its model on before it is used, and does not keep that."""
        return False

    @property
    def plain(self) -> bool:
        """A client trains and uses the common model as it is, as this class has it."""
        kind = type(self)
        return (kind.fit, kind.own) == (Personalisation.fit, Personalisation.own)

    def clashes(self, run: RunConfig) -> Iterator[str]:
        if self.beside and run.strategy.needs_factors:
            yield (
                f"personalisation: {type(self).__name__} keeps a second model besides the global one, and "
                f"{run.strategy.name} changes the frozen weights or the factors under it; expected "
                "personalisation=none or finetune"
            )

    def check(self, model: AdapterModel) -> None:
        """Raise ModelError for a model that the method does not fit; it may be on the meta device."""

    def fit(self, local: LocalRound, personal: NamedArrays) -> Training:
        """The trainings of a round. Returns the outcome to share from, and what is kept beside it.

        ``personal`` is what this returned in the client's round before, nothing at first.
        """
        outcome = yield local.plain()
        return outcome, {}

    def own(self, local: LocalRound, personal: NamedArrays) -> Job:
        """The job that makes the client's own model, as it is used, of the common one; ``personal`` is what
        ``fit`` returned, nothing of a client that never took part."""
        return local.still(values={**local.values, **personal})


@dataclass(frozen=True)
class FineTune(Personalisation):
    """``steps`` local steps from the global model before use; they are not kept. 0 is none."""

    steps: int = 5

    def __post_init__(self) -> None:
        _check("steps", self.steps, low=0)

    @property
    def adapts(self) -> bool:
        return self.steps > 0

    def own(self, local: LocalRound, personal: NamedArrays) -> Job:
        return local.job(steps=self.steps, part="fine-tune") if self.steps else local.still()


@dataclass(frozen=True)
class Reptile(FineTune):
    """Reptile (arXiv:1803.02999): w <- w + epsilon (w' - w) for what is shared, so that few steps suffice
    to adapt it; with 1 it is FineTune."""

    epsilon: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("epsilon", self.epsilon, low=0, high=1)

    def fit(self, local: LocalRound, personal: NamedArrays) -> Training:
        outcome = yield local.plain()
        if self.epsilon == 1:
            return outcome, {}
        start, end = outcome.start, outcome.values
        moved = {n: start[n] + np.float32(self.epsilon) * (end[n] - start[n]) for n in local.anchor}
        standing = yield local.still(values=end | moved)
        return replace(outcome, values=standing.values), {}


@dataclass(frozen=True)
class PerFedAvg(FineTune):
    """Per-FedAvg of first order (arXiv:2002.07948): each step takes its gradient where a step of ``alpha``
    on another batch would lead, so that the global model is a good start for such steps. 0 is FineTune.
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("alpha", self.alpha, low=0)

    def fit(self, local: LocalRound, personal: NamedArrays) -> Training:
        from fedsa_lora.learning.objectives import Ahead

        job = local.plain()
        if self.alpha:
            key = (local.client, local.round)
            ahead = partial(Ahead, alpha=self.alpha, trained=local.trained, seed=local.seed, key=key)
            job = replace(job, objective=ahead)
        outcome = yield job
        return outcome, {}


class Beside(Personalisation, ABC):
    """A personal model besides the global one: its own A, B and head, which no broadcast overwrites."""

    beside = True

    @abstractmethod
    def lesson(self, local: LocalRound, personal: NamedArrays) -> Lesson:
        """Training of the personal model from where it stands."""

    def fit(self, local: LocalRound, personal: NamedArrays) -> Training:
        common = yield local.plain()
        own = yield from self.lesson(local, personal or common.start)
        return common, own.values


@dataclass(frozen=True)
class Ditto(Beside):
    """Ditto (arXiv:2012.04221): the personal model is trained with lambda/2 ||v - w||^2 to the global values.

    ``weight`` is lambda; 0 is training alone.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        _check("weight", self.weight, low=0)

    def lesson(self, local: LocalRound, personal: NamedArrays) -> Lesson:
        return (yield local.job(values=personal, mu=self.weight, anchor=local.anchor))


@dataclass(frozen=True)
class Distillation(Beside):
    """The personal model learns from the labels and from the global model, on the client's own data.

    Minimised is (1 - weight) CE + weight T^2 KL(common || personal) at ``temperature`` T, one direction of
    federated mutual learning (arXiv:2006.16765; Hinton et al., arXiv:1503.02531). The teacher is the model
    at the start of the round. A ``weight`` of 0 is training alone.
    """

    weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        _check("weight", self.weight, low=0, high=1)
        _check("temperature", self.temperature, low=0, open_=True)

    def clashes(self, run: RunConfig) -> Iterator[str]:
        yield from super().clashes(run)
        if not run.task.classifies:
            yield "personalisation: Distillation learns from class probabilities; expected a task of classes"

    def lesson(self, local: LocalRound, personal: NamedArrays) -> Lesson:
        import torch

        from fedsa_lora.learning.objectives import Taught

        teacher = yield local.still(asked=(local.augmented,))
        logits = torch.from_numpy(teacher.answers[0])
        taught = partial(Taught, teacher=logits, weight=self.weight, temperature=self.temperature)
        return (yield local.job(values=personal, objective=taught))


@dataclass(frozen=True)
class PFedMe(Personalisation):
    """pFedMe (arXiv:2006.08848): theta is near the minimiser of f + lambda/2 ||theta - w||^2 after ``inner``
    steps, and w <- w - eta lambda (w - theta) for shared tensors; repeated for the steps of a
    round. theta is the client's own model, w is shared. With eta = 1 / lambda, w is theta.
    """

    weight: float = 15.0
    eta: float = 0.02
    inner: int = 5

    beside = True

    def __post_init__(self) -> None:
        _check("weight", self.weight, low=0)
        _check("eta", self.eta, low=0)
        _check("inner", self.inner, low=1)

    def clashes(self, run: RunConfig) -> Iterator[str]:
        yield from super().clashes(run)
        if run.strategy.proximal:
            yield "personalisation: PFedMe has its own proximal term; expected strategy=fedavg"
        if run.split.by_importance and self.inner == 1:
            yield (
                "personalisation.inner=1: importance is not measured in the first of the inner steps; "
                "expected at least 2"
            )

    def fit(self, local: LocalRound, personal: NamedArrays) -> Training:
        pace = np.float32(self.eta * self.weight)
        theta = (yield local.still()).values
        w = {name: theta[name] for name in local.anchor}
        outcomes: list[Outcome] = []
        for part in range(max(1, len(local.plain().batches) // self.inner)):
            outcome = yield local.job(
                values=theta,
                mu=self.weight,
                anchor=w,
                steps=self.inner,
                part=f"inner {part}" if part else "",
                scoring=local.scoring,
            )
            theta = outcome.values
            w = {name: value - pace * (value - theta[name]) for name, value in w.items()}
            outcomes.append(outcome)
        standing = yield local.still(values=theta | w)
        return replace(sum(outcomes[1:], outcomes[0]), values=standing.values), theta


def _check(name: str, value: float, *, low: float, high: float = float("inf"), open_: bool = False) -> None:
    """Raise ConfigError for a setting out of range."""
    if not (low < value if open_ else low <= value) or not value <= high:
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise ConfigError(f"{name}={value!r}: expected {'more than' if open_ else 'at least'} {low:g}{upper}")
