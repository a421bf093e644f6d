"""Plans: which tensors each client shares in a round, known beforehand or chosen from what clients report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import singledispatch
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.adaptive import Importance, LeastVariance, scored
from fedsa_lora.exchange.arrays import Layout, NamedArrays
from fedsa_lora.exchange.split import SplitPolicy, Turn
from strategies.plans.importance import ByImportance
from strategies.plans.variance import ByVariance
from strategies.rules.updates import Together

# In the memory of a checkpoint: what the choice remembers, and by client 1 for each tensor that it shared in
# the last round that it took part in, else 0.
CHOICE, LAST = "plan/", "last/"


class Plan(ABC):
    """Carries out a split policy over the rounds of a run; remembers nothing unless a subclass does."""

    scores = 0  # of importance that each upload brings

    @abstractmethod
    def turns(self, round_: int, clients: Iterable[str]) -> dict[str, Turn]:
        """The tensors that each of the clients is asked to share in a round."""

    def learn(self, round_: int, together: Together) -> dict[str, Any]:
        """Take in a round, the updates of each mean by themselves. Returns what is new for its row."""
        return {}

    def state(self) -> dict[str, NDArray[Any]]:
        """All that is remembered, as arrays under names of this plan's own."""
        return {}

    def restore(self, memory: NamedArrays) -> None:
        """Resume from a ``state``; other arrays of the memory are ignored."""
        return


class FixedPlan(Plan):
    """Follows a policy that is known beforehand and the same for all clients."""

    def __init__(self, policy: SplitPolicy, layout: Layout) -> None:
        self._policy, self._layout = policy, layout

    def turns(self, round_: int, clients: Iterable[str]) -> dict[str, Turn]:
        return dict.fromkeys(clients, Turn(self._policy.in_round(self._layout, round_)))


class Choice(Protocol):
    """Chooses among the tensors of ``pool``; each upload brings so many ``scores``."""

    pool: Layout

    @property
    def scores(self) -> int: ...
    def shared(self, client: str) -> frozenset[str]: ...
    def learn(self, round_: int, together: Together) -> dict[str, Any]: ...
    def state(self) -> dict[str, NDArray[np.float64]]: ...
    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None: ...


class AdaptivePlan(Plan):
    """Follows a choice among the factors; a shared head is always shared.

    A tensor that a client had to itself and is asked to share again joins: it starts from the client's own
    value, so that the first mean is that of the clients' values.
    """

    def __init__(self, layout: Layout, choice: Choice) -> None:
        self.choice, self.scores = choice, choice.scores
        self._layout = layout
        self._heads = frozenset(spec.name for spec in layout if spec.role not in ("A", "B"))
        self._last: dict[str, frozenset[str]] = {}  # shared by each client that took part

    def turns(self, round_: int, clients: Iterable[str]) -> dict[str, Turn]:
        return {client: self._turn(client) for client in clients}

    def learn(self, round_: int, together: Together) -> dict[str, Any]:
        index = self._layout.index(self.choice.pool)
        parts = []
        for updates in together:
            parts.append([update.among(index) for update in updates])
        said = self.choice.learn(round_, parts)
        for updates in together:
            self._last |= {update.client: update.shared for update in updates}
        return said

    def state(self) -> dict[str, NDArray[Any]]:
        state: dict[str, NDArray[Any]] = {CHOICE + name: a for name, a in self.choice.state().items()}
        for client, shared in self._last.items():
            state[LAST + client] = self._layout.bits(shared)
        return state

    def restore(self, memory: NamedArrays) -> None:
        chosen, last = {}, {}
        for name, array in memory.items():
            if name.startswith(CHOICE):
                chosen[name.removeprefix(CHOICE)] = np.asarray(array, float)
            elif name.startswith(LAST):
                last[name.removeprefix(LAST)] = self._layout.of_bits(array)
        self.choice.restore(chosen)
        self._last = last

    def _turn(self, client: str) -> Turn:
        shared = self.choice.shared(client) | self._heads
        return Turn(shared, shared - self._last.get(client, shared))


@singledispatch
def plan_of(policy: SplitPolicy, layout: Layout) -> Plan:
    """The plan that carries out a policy over a layout, all tensors of which may be shared.

    Another adaptive policy brings its own: register a function for its class with ``plan_of.register``.
    Raises SplitError for a layout that the policy does not fit; ConfigError without a plan.
    """
    check_plan(policy)
    return FixedPlan(policy, layout)


def check_plan(policy: SplitPolicy) -> None:
    """Raise ConfigError for an adaptive policy for which no plan is registered."""
    if policy.adaptive and plan_of.dispatch(type(policy)) is plan_of.dispatch(SplitPolicy):
        raise ConfigError(
            f"split: nothing chooses for {type(policy).__name__}; register its plan with "
            "strategies.plans.plan.plan_of.register"
        )


@plan_of.register
def _(policy: Importance, layout: Layout) -> Plan:
    return AdaptivePlan(layout, ByImportance(policy, scored(policy, layout)))


@plan_of.register
def _(policy: LeastVariance, layout: Layout) -> Plan:
    factors = layout.select(spec.name for spec in layout if spec.role in ("A", "B"))
    return AdaptivePlan(layout, ByVariance(policy, factors))
