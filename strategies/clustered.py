"""ClusteredFedSA: clients whose updates are alike share among themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.common import FitRes
from flwr.server.strategy import Strategy
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, NamedArrays, Vector
from strategies.abilities import can
from strategies.admission import Admission
from strategies.downlink import HELD, Downlink
from strategies.fedsa import FedSA
from strategies.grouping import MEMBER, Clusters, Grouping, ungroupable
from strategies.updates import Update

GROUP = "group/"  # by number in the memory of a checkpoint: what the group shares, (layout.size,)


class ClusteredFedSA(FedSA):
    """FedSA with one shared vector for each group of clients, in the manner of clustered federated
    learning (arXiv:1910.01991).

    Takes the arguments of FedSA and how to group. A round is aggregated group by group, each update to
    the vector that it was made from, and then clients are grouped by the directions of their updates of
    A (of all that is shared, where no A is). ``shared`` is the vector of the largest group, which a
    client that was never sampled is sent. Clients need not know. Raises ConfigError for what does not
    go together with groups.
    """

    def __init__(
        self, inner: Strategy, layout: Layout, initial: Vector, *, clusters: Clusters, **arguments: Any
    ) -> None:
        super().__init__(inner, layout, initial, **arguments)
        one_by_one = can(inner, "stateless")
        if faults := [*ungroupable(type(inner).__name__, one_by_one, self.split, self.downlink.codec)]:
            raise ConfigError("; ".join(faults))
        if not layout.size:
            raise ConfigError("clusters: clients share nothing that groups could share; set clusters=none")
        self.grouping = Grouping(clusters)
        self.downlinks = {0: self.downlink}
        compared = [spec.name for spec in layout if spec.role == "A"] or layout.names
        self._compared = layout.select(compared)

    def downlink_of(self, client: str) -> Downlink:
        return self.downlinks[self.grouping.of(client)]

    def combine(self, round_: int, updates: Sequence[Update]) -> float | None:
        """Each group's updates into its own vector. The largest aggregation error of a group."""
        groups: dict[int, list[Update]] = {}
        for update in updates:
            groups.setdefault(self.grouping.of(update.client), []).append(update)
        errors = []
        for number, members in sorted(groups.items()):
            downlink = self.downlinks[number]
            errors.append(self.stepped(round_, downlink, downlink.held, members)[1])
        return max((error for error in errors if error is not None), default=None)

    def learn(self, round_: int, admission: Admission[FitRes], updates: Sequence[Update]) -> None:
        index, size = self.layout.index(self._compared), self._compared.size
        origins = self.grouping.learn(round_, {u.client: u.among(index).dense(size) for u in updates})
        before = self.downlinks
        self.downlinks = {
            number: before[number] if origin == number else self._starting(before[origin].held)
            for number, origin in sorted(origins.items())
        }
        self.shared = self.downlinks[self.grouping.largest].held
        groups = {client: self.grouping.of(client) for client in self._round}
        sizes = {str(number): size for number, size in sorted(Counter(groups.values()).items())}
        self.ledger.aggregated({"groups": groups, "group_sizes": sizes})

    def memory(self) -> dict[str, NDArray[Any]]:
        vectors = {f"{GROUP}{number}": downlink.held for number, downlink in self.downlinks.items()}
        return super().memory() | vectors | self.grouping.state()

    def restore(self, round_: int, vector: Vector, memory: NamedArrays) -> None:
        super().restore(round_, vector, memory)
        self.grouping.restore(memory)
        vectors = {n.removeprefix(GROUP): a for n, a in memory.items() if n.startswith(GROUP)}
        self.downlinks = {int(number): self._starting(held) for number, held in sorted(vectors.items())}

    def _starting(self, held: Vector) -> Downlink:
        return Downlink(self.layout, held, None, self.cohort.seed)


def held_by(client: str, memory: Mapping[str, NDArray[np.float32]]) -> Vector | None:
    """The common values that a client holds, by the memory of a checkpoint; None: the server's vector."""
    if MEMBER + client in memory:
        return memory[f"{GROUP}{int(memory[MEMBER + client][0])}"]
    return memory.get(HELD)
