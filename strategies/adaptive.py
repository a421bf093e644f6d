"""AdaptiveFedSA: the server decides each round's split from what the clients report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.common import FitRes
from flwr.server.strategy import Strategy
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.adaptive import Importance, LeastVariance, scored
from fedsa_lora.exchange.arrays import Layout, NamedArrays, Vector
from fedsa_lora.exchange.split import Turn
from strategies.admission import Admission
from strategies.fedsa import FedSA
from strategies.importance import ImportancePlan, VariancePlan, disagreement
from strategies.updates import Update

# In the memory of a checkpoint: the plan's own, and by client 1 for each tensor that it shares, else 0, in
# the round and in the last one that it took part in.
PLAN, SHARED, LAST = "plan/", "shared/", "last/"


class AdaptiveFedSA(FedSA):
    """FedSA with a split that follows importance scores, or the variance between clients.

    Takes the arguments of FedSA, with ``split`` an ``Importance`` or a ``LeastVariance``. The split of a
    round is announced in its broadcast and recorded in its row. A tensor that a client had to itself and
    is asked to share again starts from the client's own value, so that the first mean is that of the
    clients' values; one that becomes local goes on from the common value.
    """

    def __init__(self, inner: Strategy, layout: Layout, initial: Vector, **arguments: Any) -> None:
        super().__init__(inner, layout, initial, **arguments)
        self._shared_last: dict[str, frozenset[str]] = {}  # by each client that took part
        self._heads = frozenset(spec.name for spec in layout if spec.role not in ("A", "B"))
        if isinstance(self.split, Importance):
            self._scored = scored(self.split, layout)
            self.plan: ImportancePlan | VariancePlan = ImportancePlan(self.split, self._scored)
        elif isinstance(self.split, LeastVariance):
            self._scored = layout.select(set(layout.names) - self._heads)
            self.plan = VariancePlan(self.split, self._scored)
        else:
            raise ConfigError(f"AdaptiveFedSA needs an adaptive split, got {type(self.split).__name__}")

    def turn(self, client: str, round_: int) -> Turn:
        shared = self.plan.shared(client) | self._heads
        return Turn(shared, shared - self._shared_last.get(client, shared))

    def learn(self, round_: int, admission: Admission[FitRes], updates: Sequence[Update]) -> None:
        index = self.layout.index(self._scored)
        parts = [update.among(index) for update in updates]
        if isinstance(self.plan, VariancePlan):
            self.plan.learn(round_, parts)
        else:
            scores = {answer.header.client: answer.header.scores for answer in admission.answers}
            weights = {update.client: float(update.examples) for update in updates}
            self.plan.learn(scores, weights, disagreement(self._scored, parts))
            self.ledger.aggregated({"threshold": self.plan.threshold})
        self._shared_last |= {update.client: update.shared for update in updates}

    def memory(self) -> dict[str, NDArray[Any]]:
        plan = {PLAN + name: array for name, array in self.plan.state().items()}
        asked = {
            SHARED + client: np.array([name in turn.shared for name in self.layout.names], np.float32)
            for client, turn in self._round.items()
        }
        last = {
            LAST + client: np.array([name in shared for name in self.layout.names], np.float32)
            for client, shared in self._shared_last.items()
        }
        return super().memory() | plan | asked | last

    def restore(self, round_: int, vector: Vector, memory: NamedArrays) -> None:
        super().restore(round_, vector, memory)
        plan = {n.removeprefix(PLAN): np.asarray(a, float) for n, a in memory.items() if n.startswith(PLAN)}
        self.plan.restore(plan)
        names = np.array(self.layout.names, object)
        last = {n.removeprefix(LAST): bits > 0 for n, bits in memory.items() if n.startswith(LAST)}
        self._shared_last = {client: frozenset(names[bits]) for client, bits in last.items()}

    def decode(self, header: wire.UploadHeader, result: FitRes) -> Update:
        expected = len(self._scored.names) if isinstance(self.plan, ImportancePlan) else 0
        if len(header.scores) != expected:
            raise WireError(f"brings {len(header.scores)} importance scores, expected {expected}")
        return super().decode(header, result)
