"""Reads a checkpoint of the server: the message that any client would be sent after that round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import Layout, NamedArrays, Vector
from fedsa_lora.exchange.split import SplitPolicy, Turn
from strategies.audience import GROUP, held_by
from strategies.round.downlink import merged_by
from strategies.round.open_round import asked_turn
from strategies.round.totals import Totals


@dataclass(frozen=True)
class Checkpoint:
    """A round, the server's common vector (layout.size,) of what may be shared, and its memory."""

    split: SplitPolicy
    layout: Layout
    round: int
    common: Vector
    memory: NamedArrays

    def turn(self, client: str) -> Turn:
        """The tensors that the client was asked to share when the round was evaluated."""
        asked = asked_turn(self.layout, client, self.memory)
        if asked is None:
            return Turn(self.split.in_round(self.layout, self.round))
        return asked

    @property
    def groups(self) -> int:
        """The number of groups, each with its own common values; 1 where all clients hold the same."""
        return max(1, sum(name.startswith(GROUP) for name in self.memory))

    def held(self, client: str | None, rank: int | None = None) -> Vector:
        """The common values that a client (None: one that nothing is known of) whose adapter has this rank
        (None: that of the layout) holds."""
        held = held_by(client, self.common, self.memory)
        index = self.layout.index(self.layout.limited(rank))
        return held if index is None else held[index]

    def weight(self, client: str) -> float:
        """The weight of the client in the common values; 0 where it has none, or weights are not sent."""
        totals = Totals(told=True)
        totals.restore(self.memory)
        return totals.weight(client)

    def merged(self) -> dict[str, NDArray[np.float32]]:
        """By layer, what was merged into the frozen weights of all clients, (d_out, d_in)."""
        merged = {}
        for layer, factors in merged_by(self.memory).items():
            merged[layer] = (factors.B @ factors.A).astype(np.float32, copy=False)
        return merged
