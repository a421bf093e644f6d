"""Methods of unlearning that train with their own objective, see ``forgetting``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ModelError
from fedsa_lora.exchange.arrays import Arrays, NamedArrays
from fedsa_lora.group import at_least, more_than
from fedsa_lora.learning.local_round import LocalRound
from fedsa_lora.learning.personalisation import Training
from fedsa_lora.learning.unlearning import Phased, Request
from fedsa_lora.seeds import generator, torch_seed

if TYPE_CHECKING:
    from fedsa_lora.learning.adapters import AdapterModel
    from fedsa_lora.learning.job import Job, Outcome
    from fedsa_lora.settings import RunConfig

Constants: TypeAlias = "Generator[Job, Outcome, Arrays]"


@dataclass(frozen=True)
class ByObjective(Phased):
    """Train with an objective that makes the model forget: gamma times its own loss and alpha times that of
    examples that are kept.

    ``lr``, ``steps`` and ``batch_size`` are those of a round of unlearning; null: those of ``train``. With
    ``only_local`` what is shared stays as it is: under ``split=share_a`` B alone unlearns.
    """

    gamma: Annotated[float, at_least(0)] = 1.0
    alpha: Annotated[float, at_least(0)] = 1.0
    lr: Annotated[float | None, more_than(0)] = None
    steps: Annotated[int | None, at_least(1)] = None
    batch_size: Annotated[int | None, at_least(1)] = None
    only_local: bool = False

    def clashes(self, run: RunConfig) -> Iterator[str]:
        yield from super().clashes(run)
        if self.only_local and "local" not in (run.split.words()["A"], run.split.words()["B"]):
            yield (
                "unlearning.only_local: all that is trained is shared; expected split=share_a, or "
                "unlearning.only_local=false"
            )

    @abstractmethod
    def objective(self, request: Request, constants: NamedArrays) -> Callable[..., Any]:
        """The objective's class with all that is particular to it; ``constants`` are those of the phase."""

    def constants(self, request: Request) -> Constants:
        """Values that are read off the model as it stands when the phase begins, once: an array for each
        name."""
        return {}
        yield

    def forget(self, request: Request) -> Training:
        from fedsa_lora.learning.training import round_batches

        local, marked = request.local, request.marked
        mine = f"{type(self).__name__}-{self.learn}/"  # of another method or phase nothing is of use
        constants = {n.removeprefix(mine): a for n, a in request.kept.items() if n.startswith(mine)}
        if not constants:
            constants = yield from self.constants(request)
        key = (local.client, local.round)
        given = {"lr": self.lr, "steps": self.steps, "batch_size": self.batch_size}
        terms: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.steps is not None:
            terms["epochs"] = None
        settings = replace(local.settings, **terms)
        lengths = local.examples.lengths[marked]
        batches = round_batches(lengths, settings, generator(local.seed, "forget", *key))
        trained = local.trained - local.anchor.keys() if self.only_local else local.trained
        objective = partial(
            self.objective(request, constants),
            kept=request.rest,
            gamma=self.gamma,
            alpha=self.alpha,
            seed=local.seed,
            key=key,
        )
        outcome = yield local.still(
            settings=settings,
            trained=trained,
            batches=[marked[batch] for batch in batches],
            dropout=torch_seed(local.seed, "forget dropout", *key),
            objective=objective,
        )
        return outcome, {mine + name: array for name, array in constants.items()}


@dataclass(frozen=True)
class GradAscent(ByObjective):
    """Gradient ascent on what is to be forgotten: minus its mean loss by token; nothing is kept."""

    alpha: Annotated[float, at_least(0)] = 0.0

    def objective(self, request: Request, constants: NamedArrays) -> Callable[..., Any]:
        from fedsa_lora.learning.forgetting import Ascent

        return Ascent


@dataclass(frozen=True)
class GradDiff(GradAscent):
    """Gradient difference (arXiv:2203.12817): ascent on what is to be forgotten, descent on what is kept."""

    alpha: Annotated[float, at_least(0)] = 1.0


@dataclass(frozen=True)
class NPO(ByObjective):
    """Negative preference optimisation (arXiv:2404.05868) with the loss of what is kept."""

    beta: Annotated[float, more_than(0)] = 0.1

    def constants(self, request: Request) -> Constants:
        return {"reference": (yield from losses(request.local))}

    def objective(self, request: Request, constants: NamedArrays) -> Callable[..., Any]:
        from fedsa_lora.learning.forgetting import NegativePreference

        return partial(NegativePreference, beta=self.beta, reference=constants["reference"])


@dataclass(frozen=True)
class SimNPO(ByObjective):
    """Simple NPO (arXiv:2410.07163): by token and without a reference."""

    gamma: Annotated[float, at_least(0)] = 0.125
    beta: Annotated[float, more_than(0)] = 4.5
    delta: float = 0.0

    def objective(self, request: Request, constants: NamedArrays) -> Callable[..., Any]:
        from fedsa_lora.learning.forgetting import SimplePreference

        return partial(SimplePreference, beta=self.beta, delta=self.delta)


@dataclass(frozen=True)
class DPO(ByObjective):
    """Direct preference optimisation (arXiv:2305.18290) of a refusal over the answer."""

    beta: Annotated[float, more_than(0)] = 0.1

    def constants(self, request: Request) -> Constants:
        reference = yield from losses(request.local)
        of_refusal = yield from losses(replace(request.local, examples=request.refused))
        return {"reference": reference, "of_refusal": of_refusal}

    def objective(self, request: Request, constants: NamedArrays) -> Callable[..., Any]:
        from fedsa_lora.learning.forgetting import DirectPreference

        return partial(
            DirectPreference,
            beta=self.beta,
            refused=request.refused,
            reference=constants["reference"],
            of_refusal=constants["of_refusal"],
        )


@dataclass(frozen=True)
class RMU(ByObjective):
    """Representation misdirection (arXiv:2403.03218): hidden states behind block ``layer``, of which the
    first is 0, are led to a random direction, those of what is kept stay."""

    layer: Annotated[int, at_least(0)] = 2
    steering: Annotated[float, more_than(0)] = 2.0

    def check(self, model: AdapterModel) -> None:
        from fedsa_lora.tasks.heads import unwrapped

        blocks = int(unwrapped(model.module).config.num_hidden_layers)
        if self.layer >= blocks:
            raise ModelError(
                f"unlearning.layer={self.layer}: the model has {blocks} blocks; expected 0 to {blocks - 1}"
            )

    def constants(self, request: Request) -> Constants:
        from fedsa_lora.learning.forgetting import HiddenStates, answer_tokens

        local = request.local
        outcome = yield local.still(asked=(local.examples,), read=HiddenStates(self.layer))
        of_kept = np.repeat(~request.mask, answer_tokens(local.examples))
        return {"reference": outcome.answers[0][of_kept]}

    def objective(self, request: Request, constants: NamedArrays) -> Callable[..., Any]:
        from fedsa_lora.learning.forgetting import HiddenStates, Misdirection

        states = HiddenStates(self.layer)
        return partial(Misdirection, states=states, steering=self.steering, reference=constants["reference"])


def losses(local: LocalRound) -> Generator[Job, Outcome, NDArray[np.float32]]:
    """The summed loss of the answer of each example, (n,), where the model stands."""
    from fedsa_lora.learning.forgetting import read_losses

    outcome = yield local.still(asked=(local.examples,), read=read_losses)
    return np.ascontiguousarray(outcome.answers[0][:, 0])
