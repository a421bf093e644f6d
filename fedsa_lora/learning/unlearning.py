"""Unlearning: how a client makes its model forget some of its examples, phase by phase.

A method works with any split. Like a personalisation method it yields training jobs, one after another, and
holds no model. Its memory of a phase is passed to it again in the next round of that phase.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import TrainingError
from fedsa_lora.exchange.arrays import NamedArrays
from fedsa_lora.group import Group, at_least
from fedsa_lora.learning.local_round import LocalRound
from fedsa_lora.learning.personalisation import Training
from fedsa_lora.learning.requests import Requests
from fedsa_lora.phases import Asked, Phases
from fedsa_lora.tasks.task import Examples, Forgettable, Task

if TYPE_CHECKING:
    from fedsa_lora.learning.adapters import AdapterModel
    from fedsa_lora.settings import RunConfig

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Request:
    """A request of the server that a client forgets, and all that it needs for it.

    ``local`` is the round as any other would be, ``initial`` the common start of all tensors, and ``kept``
    what was remembered in the last round of the phase, nothing at first.
    """

    asked: Asked
    local: LocalRound
    task: Forgettable
    initial: NamedArrays
    kept: NamedArrays

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """True, (n,), of each example that is to be forgotten."""
        return self.task.to_forget(self.local.examples)

    @property
    def marked(self) -> Indices:
        """The examples that are to be forgotten."""
        return np.flatnonzero(self.mask)

    @property
    def rest(self) -> Indices:
        """The examples that are kept."""
        return np.flatnonzero(~self.mask)

    @cached_property
    def refused(self) -> Examples:
        """All examples, each with a refusal for an answer."""
        return self.task.refused(self.local.examples)

    @property
    def examples(self) -> int:
        """The number of examples that the round is for, by which it counts in the mean."""
        return len(self.rest) if self.asked is Asked.RETAIN else len(self.local.examples)

    @property
    def without(self) -> LocalRound:
        """The same round as if what is to be forgotten had never been there."""
        if not self.mask.any():
            return self.local
        return replace(self.local, examples=self.local.examples.at(self.rest))


@dataclass(frozen=True)
class Unlearning(Group, Requests):
    """No unlearning: the ``targets`` learn the forget set like all other data.

    ``targets`` are the clients that hold the forget set, by id.
    """

    targets: list[str | int] = field(default_factory=lambda: [0])

    @property
    def phases(self) -> Phases:
        """The rounds of each phase, and the targets."""
        return Phases(targets=self.names)

    @property
    def names(self) -> frozenset[str]:
        """The ids of the targets."""
        return frozenset(map(str, self.targets))

    @property
    def chosen(self) -> bool:
        """True where clients are ever asked for anything but their plain training."""
        return self.phases != Phases(targets=self.names)

    def check(self, model: AdapterModel) -> None:
        """Raise ModelError for a model that the method does not fit; it may be on the meta device."""

    def clashes(self, run: RunConfig) -> Iterator[str]:
        if not self.chosen:
            return
        name = type(self).__name__
        if not isinstance(run.task, Forgettable):
            yield f"unlearning: {name} needs a task that defines what to forget; expected task=tofu"
        elif {*map(str, run.task.targets)} != self.names:
            holders = ", ".join(map(str, run.task.targets))
            yield f"unlearning.targets={self.targets}: task.targets are {holders}; expected the same clients"
        if not run.personalisation.plain:
            method = type(run.personalisation).__name__
            yield (
                f"unlearning: {method} keeps or trains a second model that would forget nothing; expected "
                "personalisation=none"
            )
        if run.codec.leaves:
            yield (
                f"unlearning: values that codec {run.codec.name} sends later would be learned after all; "
                f"expected codec=dense or another without residual"
            )
        if not run.strategy.can("linear"):
            yield (
                f"unlearning: {run.strategy.name} does not take the mean, in which the update of a "
                f"forgetting client counts; expected fedavg, fedavgm, fedadagrad, fedadam, fedyogi or fedprox"
            )

    def answer(
        self, word: str, local: LocalRound, task: Task, initial: NamedArrays, kept: NamedArrays
    ) -> tuple[int, Training]:
        if word not in list(Asked) or not isinstance(task, Forgettable):
            return super().answer(word, local, task, initial, kept)
        request = Request(Asked(word), local, task, initial, kept)
        return request.examples, self.fit(request)

    def fit(self, request: Request) -> Training:
        """The trainings of a request, as those of ``answer``. They raise TrainingError where the client has
        nothing to forget."""
        if request.asked is Asked.STILL:
            return (yield request.local.still()), {}
        if request.asked is Asked.RETAIN:
            return (yield request.without.plain()), {}
        if not len(request.marked):
            raise TrainingError(
                "this client has nothing to forget: correct unlearning.targets, or task.forget_split"
            )
        return (yield from self.forget(request))

    def forget(self, request: Request) -> Training:
        """The trainings of a round of unlearning, as those of ``fit``."""
        raise TrainingError("the server asks for unlearning, but this run has none")
        yield


@dataclass(frozen=True)
class Retrain(Unlearning):
    """The reference of every method: a federation whose targets never saw the forget set."""

    @property
    def phases(self) -> Phases:
        return Phases(targets=self.names, forgotten=True)


@dataclass(frozen=True)
class Phased(Unlearning, ABC):
    """Learn for some rounds, unlearn for some, and recover for some without the forget set.

    ``others``: while the targets unlearn, the other clients answer with no change (``still``), so that each
    has its weight in the mean, or train on (``train``).
    """

    learn: Annotated[int, at_least(0)] = 4
    unlearn: Annotated[int, at_least(1)] = 1
    recover: Annotated[int, at_least(0)] = 1
    others: Literal["still", "train"] = "still"

    @property
    def phases(self) -> Phases:
        return Phases(self.learn, self.unlearn, self.recover, self.names, self.others)

    def clashes(self, run: RunConfig) -> Iterator[str]:
        yield from super().clashes(run)
        total = self.learn + self.unlearn + self.recover
        if total != run.federation.rounds:
            yield (
                f"unlearning: {self.learn} rounds to learn, {self.unlearn} to unlearn and {self.recover} to "
                f"recover are {total}, not {run.federation.rounds}; expected federation.rounds={total}"
            )

    def describe(self) -> dict[str, str]:
        rounds = f"{self.learn} rounds to learn, {self.unlearn} to unlearn, {self.recover} to recover"
        others = f"the others {'answer with no change' if self.others == 'still' else 'train on'} meanwhile"
        targets = ", ".join(sorted(self.names))
        return {"unlearning": f"{type(self).__name__} by client {targets}: {rounds}; {others}"}


@dataclass(frozen=True)
class DropB(Phased):
    """Discard the local tensors of the target, B under ``split=share_a``: it starts from the initial values
    again. Nothing is trained and A stays."""

    def clashes(self, run: RunConfig) -> Iterator[str]:
        yield from super().clashes(run)
        if not run.split.by_role or run.split.words().get("B") != "local":
            yield "unlearning: the target has no local B to drop; expected split=share_a"

    def forget(self, request: Request) -> Training:
        local = request.local
        fresh = {name: array for name, array in request.initial.items() if name not in local.anchor}
        outcome = yield local.still(values={**local.values, **fresh})
        return replace(outcome, start=dict(local.values)), {}
