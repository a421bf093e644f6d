"""Personalisation: how a client learns its own model around what is common to all.

Each method works with any split: the common model is the client's whole model, of which the split shares
some tensors; the anchor is what a round's broadcast said of those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import NamedArrays
from fedsa_lora.group import Group
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.objectives import Ahead, Taught
from fedsa_lora.learning.training import TrainReport, TrainSettings, predict, round_batches, train
from fedsa_lora.seeds import generator, torch_seed
from fedsa_lora.tasks.task import Examples, Task

if TYPE_CHECKING:
    from fedsa_lora.settings import RunConfig

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class LocalRound:
    """A client's work of one round: a model that stands at the round's start, and data to train it on.

    ``anchor`` are the common values of what is shared, ``mu`` the weight of FedProx's term towards them,
    ``others`` what is common without this client's own part in it.
    ``observe`` sees the gradients of the model that is shared from, see ``train``.
    """

    model: AdapterModel
    task: Task
    examples: Examples
    settings: TrainSettings
    trained: frozenset[str]
    seed: int
    client: str
    round: int
    anchor: NamedArrays = field(default_factory=dict)
    mu: float = 0.0
    others: NamedArrays = field(default_factory=dict)
    observe: Callable[[AdapterModel], None] | None = None

    def plain(self, **changes: Any) -> TrainReport:
        """The training of FedAvg, with FedProx's term where there is one."""
        return self.train(mu=self.mu, observe=self.observe, **changes)

    def train(
        self,
        *,
        mu: float = 0.0,
        anchor: NamedArrays | None = None,
        steps: int | None = None,
        part: str = "",
        **changes: Any,
    ) -> TrainReport:
        """Train the model from where it stands. Every call for the same ``part`` of the round draws the same
        batches and dropout."""
        key: tuple[str | int, ...] = (self.client, self.round, *([part] if part else []))
        settings = replace(self.settings, steps=steps, epochs=None) if steps else self.settings
        return train(
            self.model,
            self.task,
            self.examples,
            settings,
            trained=self.trained,
            rng=generator(self.seed, "batches", *key),
            torch_seed=torch_seed(self.seed, "dropout", *key),
            proximal=(mu, self.anchor if anchor is None else anchor) if mu else None,
            **changes,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of a round."""
        rng = generator(self.seed, "batches", self.client, self.round)
        return len(round_batches(self.examples.lengths, self.settings, rng))


@dataclass(frozen=True)
class Personalisation(Group):
    """None: a client trains the common model, and that is its own."""

    beside: ClassVar[bool] = False  # whether a client keeps a personal model beside the common one
    mixes: ClassVar[bool] = False  # whether its own model computes with what the others shared besides

    @property
    def adapts(self) -> bool:
        """A client trains its model on before it is used, and does not keep that."""
        return False

    def clashes(self, run: RunConfig) -> Iterator[str]:
        if self.beside and run.strategy.needs_factors:
            yield (
                f"personalisation: {type(self).__name__} keeps a model beside the common one, and "
                f"{run.strategy.name} changes the frozen weights or the factors under it; expected "
                "personalisation=none or finetune"
            )

    def check(self, model: AdapterModel) -> None:
        """Raise ModelError for a model that the method does not fit; it may be on the meta device."""

    def fit(self, local: LocalRound, personal: NamedArrays) -> tuple[TrainReport, Arrays]:
        """Train. The model is left as it is to be shared from.

        ``personal`` is what this returned in the client's round before, nothing at first.
        """
        return local.plain(), {}

    @contextmanager
    def ready(self, local: LocalRound, personal: NamedArrays) -> Iterator[None]:
        """Turn the common model into the client's own, as it is used; ``personal`` is what ``fit`` returned,
        nothing of a client that never took part."""
        if personal:
            local.model.write(personal)
        yield


@dataclass(frozen=True)
class FineTune(Personalisation):
    """``steps`` local steps from the common model before it is used; they are not kept. 0 is none."""

    steps: int = 5

    def __post_init__(self) -> None:
        _check("steps", self.steps, low=0)

    @property
    def adapts(self) -> bool:
        return self.steps > 0

    @contextmanager
    def ready(self, local: LocalRound, personal: NamedArrays) -> Iterator[None]:
        if self.steps:
            local.train(steps=self.steps, part="fine-tune")
        yield


@dataclass(frozen=True)
class Reptile(FineTune):
    """Reptile (arXiv:1803.02999): w <- w + epsilon (w' - w) for what is shared, so that few steps suffice
    to adapt it; with 1 it is FineTune."""

    epsilon: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("epsilon", self.epsilon, low=0, high=1)

    def fit(self, local: LocalRound, personal: NamedArrays) -> tuple[TrainReport, Arrays]:
        start = local.model.read()
        report = local.plain()
        if self.epsilon != 1:
            end = local.model.read()
            moved = {n: start[n] + np.float32(self.epsilon) * (end[n] - start[n]) for n in local.anchor}
            local.model.write(end | moved)
        return report, {}


@dataclass(frozen=True)
class PerFedAvg(FineTune):
    """Per-FedAvg of first order (arXiv:2002.07948): each step takes its gradient where a step of ``alpha``
    on another batch would lead, so that the common model is one from which such steps go far. 0 is FineTune.
    """

    alpha: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("alpha", self.alpha, low=0)

    def fit(self, local: LocalRound, personal: NamedArrays) -> tuple[TrainReport, Arrays]:
        if not self.alpha:
            return super().fit(local, personal)
        rng = generator(local.seed, "ahead", local.client, local.round)
        ahead = partial(Ahead, alpha=self.alpha, trained=local.trained, rng=rng)
        return local.plain(objective=ahead), {}


class Beside(Personalisation, ABC):
    """A personal model beside the common one: its own A, B and head, which no broadcast overwrites."""

    beside = True

    @abstractmethod
    def lesson(self, local: LocalRound) -> Callable[[], object]:
        """How the personal model is trained; asked for while the model is as the round began."""

    def fit(self, local: LocalRound, personal: NamedArrays) -> tuple[TrainReport, Arrays]:
        start = local.model.read()
        learn = self.lesson(local)
        report = local.plain()
        common = local.model.read()
        local.model.write(personal or start)
        learn()
        kept = local.model.read()
        local.model.write(common)
        return report, kept


@dataclass(frozen=True)
class Ditto(Beside):
    """Ditto (arXiv:2012.04221): the personal model is trained with lambda/2 ||v - w||^2 to the common values.

    ``weight`` is lambda; 0 is training alone.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        _check("weight", self.weight, low=0)

    def lesson(self, local: LocalRound) -> Callable[[], object]:
        return partial(local.train, mu=self.weight)


@dataclass(frozen=True)
class Distillation(Beside):
    """The personal model learns from the labels and from the common model, on the client's own data.

    Minimised is (1 - weight) CE + weight T^2 KL(common || personal) at ``temperature`` T, one direction of
    federated mutual learning (arXiv:2006.16765; Hinton et al., arXiv:1503.02531). The teacher is the model
    that the round began with. A ``weight`` of 0 is training alone.
    """

    weight: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        _check("weight", self.weight, low=0, high=1)
        _check("temperature", self.temperature, low=0, open_=True)

    def clashes(self, run: RunConfig) -> Iterator[str]:
        yield from super().clashes(run)
        if not getattr(run.task, "classifies", False):
            yield "personalisation: Distillation learns from class probabilities; expected a task of classes"

    def lesson(self, local: LocalRound) -> Callable[[], object]:
        logits = torch.from_numpy(predict(local.model, local.task, local.examples, local.settings))
        taught = partial(Taught, teacher=logits, weight=self.weight, temperature=self.temperature)
        return partial(local.train, objective=taught)


@dataclass(frozen=True)
class PFedMe(Personalisation):
    """pFedMe (arXiv:2006.08848): theta is near the minimiser of f + lambda/2 ||theta - w||^2 after ``inner``
    steps, and w <- w - eta lambda (w - theta) for what is shared; over and over, for as many steps as a
    round has. theta is the client's own model, w is shared. With eta = 1 / lambda, w is theta.
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
            yield "personalisation: PFedMe has a proximal term of its own; expected strategy=fedavg"
        if run.split.by_importance and self.inner == 1:
            yield (
                "personalisation.inner=1: importance is not measured in the first of the inner steps; "
                "expected at least 2"
            )

    def fit(self, local: LocalRound, personal: NamedArrays) -> tuple[TrainReport, Arrays]:
        model, pace = local.model, np.float32(self.eta * self.weight)
        theta, reports = model.read(), []
        w = {name: theta[name] for name in local.anchor}
        for part in range(max(1, local.steps // self.inner)):
            key = f"inner {part}" if part else ""
            reports.append(
                local.train(mu=self.weight, anchor=w, steps=self.inner, part=key, observe=local.observe)
            )
            theta = model.read()
            w = {name: value - pace * (value - theta[name]) for name, value in w.items()}
        model.write(theta | w)
        return sum(reports[1:], reports[0]), theta


def _check(name: str, value: float, *, low: float, high: float = float("inf"), open_: bool = False) -> None:
    """Raise ConfigError for a setting out of range."""
    if not (low < value if open_ else low <= value) or not value <= high:
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise ConfigError(f"{name}={value!r}: expected {'more than' if open_ else 'at least'} {low:g}{upper}")
