"""Audiences: which common vector a client is sent, and with whose updates its own are averaged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, NamedArrays, Vector
from fedsa_lora.exchange.split import Turn
from strategies.plans.grouping import MEMBER, Clusters, Grouping
from strategies.round.downlink import HELD, Downlink
from strategies.rules.updates import Update

GROUP = "group/"  # by number in the memory of a checkpoint: what the group shares, (layout.size,)


class Audience(ABC):
    """Knows the downlink of each client. Clients of one downlink hold one common vector, and the mean of
    their updates makes its next one."""

    @property
    @abstractmethod
    def common(self) -> Vector:
        """The server's vector for a client that nothing is known of, (layout.size,)."""

    @abstractmethod
    def downlink(self, client: str) -> Downlink:
        """The source of the broadcasts to a client."""

    def together(self, updates: Sequence[Update]) -> dict[Downlink, list[Update]]:
        """The updates of a round by the downlink whose vector they change, in their order."""
        found: dict[Downlink, list[Update]] = {}
        for update in updates:
            found.setdefault(self.downlink(update.client), []).append(update)
        return found

    def after(self, round_: int, turns: Mapping[str, Turn]) -> dict[str, Turn]:
        """The turns of a round once it is aggregated: what joined in it has a common value by then, unless
        none was made for that client."""
        after = {}
        for client, turn in turns.items():
            if self.downlink(client).round == round_:
                after[client] = Turn(turn.shared)
            else:
                after[client] = turn
        return after

    @abstractmethod
    def learn(self, round_: int, clients: Iterable[str], updates: Sequence[Update]) -> dict[str, Any]:
        """Take in a round that was aggregated, with the clients that were there. Returns what is new for its
        row."""

    @abstractmethod
    def forget(self) -> None:
        """Send everyone vectors whole: clients continued from what they were sent last."""

    @abstractmethod
    def state(self) -> dict[str, NDArray[Any]]:
        """All that is remembered, as arrays under names of this audience's own."""

    @abstractmethod
    def restore(self, round_: int, common: Vector, memory: NamedArrays) -> None:
        """Resume after a round from a ``state``; other arrays of the memory are ignored."""


class Everyone(Audience):
    """One common vector for all clients."""

    def __init__(self, downlink: Downlink) -> None:
        self._downlink = downlink

    @property
    def common(self) -> Vector:
        return self._downlink.vector

    def downlink(self, client: str) -> Downlink:
        return self._downlink

    def learn(self, round_: int, clients: Iterable[str], updates: Sequence[Update]) -> dict[str, Any]:
        return {}

    def forget(self) -> None:
        self._downlink.forget()

    def state(self) -> dict[str, NDArray[Any]]:
        return self._downlink.state()

    def restore(self, round_: int, common: Vector, memory: NamedArrays) -> None:
        self._downlink.restore(round_, common, memory)


class Groups(Audience):
    """One common vector for each group of clients, in the manner of clustered federated learning
    (arXiv:1910.01991).

    Clients are grouped by the directions of their updates of A (of all that is shared, where no A is);
    what a client did not share in a round counts as if it had not moved. A client that was never sampled is
    sent the vector of the largest group. Vectors are sent whole, because clients change groups. Raises
    ConfigError for an empty layout.
    """

    def __init__(self, clusters: Clusters, layout: Layout, initial: Vector) -> None:
        if not layout.size:
            raise ConfigError("clusters: clients share nothing that groups could share; set clusters=none")
        self.grouping = Grouping(clusters)
        self.downlinks = {0: Downlink(layout, initial, None, 0)}
        self._layout = layout
        compared = [spec.name for spec in layout if spec.role == "A"] or layout.names
        self._compared = layout.select(compared)

    @property
    def common(self) -> Vector:
        return self.downlinks[self.grouping.largest].vector

    def downlink(self, client: str) -> Downlink:
        return self.downlinks[self.grouping.of(client)]

    def learn(self, round_: int, clients: Iterable[str], updates: Sequence[Update]) -> dict[str, Any]:
        index, size = self._layout.index(self._compared), self._compared.size
        origins = self.grouping.learn(round_, {u.client: u.among(index).dense(size) for u in updates})
        before, self.downlinks = self.downlinks, {}
        for number, origin in sorted(origins.items()):
            if number == origin:
                self.downlinks[number] = before[number]
            else:
                self.downlinks[number] = before[origin].branched()
        groups = {client: self.grouping.of(client) for client in clients}
        sizes = {str(number): size for number, size in sorted(Counter(groups.values()).items())}
        return {"groups": groups, "group_sizes": sizes}

    def forget(self) -> None:
        for downlink in self.downlinks.values():
            downlink.forget()

    def state(self) -> dict[str, NDArray[Any]]:
        vectors = {f"{GROUP}{number}": downlink.vector for number, downlink in self.downlinks.items()}
        return vectors | self.grouping.state()

    def restore(self, round_: int, common: Vector, memory: NamedArrays) -> None:
        self.grouping.restore(memory)
        self.downlinks = {}
        for name, vector in sorted(memory.items()):
            if name.startswith(GROUP):
                downlink = Downlink(self._layout, vector, None, 0)
                downlink.restore(round_, vector, {})
                self.downlinks[int(name.removeprefix(GROUP))] = downlink


def held_by(client: str | None, common: Vector, memory: NamedArrays) -> Vector:
    """The common values that a client holds (None: one that nothing is known of), by the memory of a
    checkpoint, beside the server's vector ``common`` in it, (layout.size,)."""
    if client is not None and MEMBER + client in memory:
        return memory[f"{GROUP}{int(memory[MEMBER + client][0])}"]
    return memory.get(HELD, common)
