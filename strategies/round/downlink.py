"""Sends a client everything, or the change since the broadcast that it saw last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import Layout, NamedArrays, Vector
from fedsa_lora.exchange.broadcast import changed, pack_factors
from fedsa_lora.exchange.codec import Codec
from fedsa_lora.exchange.vector import vector_digest
from fedsa_lora.seeds import generator
from strategies.rules.factors import Factors, stack, truncate

# In the memory of a checkpoint.
HELD, MERGED_A, MERGED_B = "held", "merged_A/", "merged_B/"
LAST_A, LAST_B = "last_merge_A/", "last_merge_B/"  # what the last round merged
MASK, CHANGE, TOOK_PART = "change_mask", "change", "took_part/"


@dataclass(frozen=True)
class Sending:
    """The arrays of a broadcast, and what its header says of them."""

    arrays: list[NDArray[Any]]
    fields: dict[str, Any]


class Downlink:
    """The server's ``vector`` of the shared tensors, and what clients hold of it.

    Without a codec they hold the vector itself, sent whole. With one, all clients hold one common vector,
    ``held``, that follows the server's by coded changes; what a change left out is part of the next. A
    client that took part in the round before is sent the change, any other the common vector whole.
    ``round`` is the one whose aggregate was published last.
    """

    def __init__(self, layout: Layout, initial: Vector, codec: Codec | None, seed: int) -> None:
        self.layout, self.codec, self.seed = layout, codec, seed
        self.vector = self.held = initial
        self.merged: dict[str, Factors] = {}  # all that was merged into the frozen weights so far
        self.round = 0
        self._took_part: frozenset[str] = frozenset()
        self._change: tuple[str, NDArray[Any]] | None = None
        self._merge: Mapping[str, Factors] = {}
        self._made: dict[tuple[bool, int | None], Sending] = {}

    def publish(
        self, round_: int, vector: Vector, merge: Mapping[str, Factors], took_part: Iterable[str]
    ) -> None:
        """Take up the aggregate of a round. ``took_part`` are the clients that hold what was sent in it."""
        self.round, self._took_part, self._merge = round_, frozenset(took_part), merge
        self.vector, self._made = vector, {}
        for layer, factors in merge.items():
            known = self.merged.get(layer)
            self.merged[layer] = factors if known is None else truncate(stack([known, factors], [1, 1]))
        if self.codec is None:
            self.held = vector
            return
        difference = vector - self.held
        names = [name for name in self.layout.names if difference[self.layout.span(name)].any()]
        carried = self.layout.select(names)
        index = self.layout.index(carried)
        change = difference if index is None else difference[index]
        payload = self.codec.encode(change, generator(self.seed, "downlink", round_))
        self.held = changed(self.held, self.layout, carried, payload, self.codec)
        self._change = self.layout.mask(names), payload

    def forget(self) -> None:
        """Send everyone the vector whole, as clients continued from what they were sent last."""
        self._took_part = frozenset()

    def branched(self) -> Downlink:
        """One without a codec that continues from the same vector."""
        branch = Downlink(self.layout, self.vector, None, self.seed)
        branch.round = self.round
        return branch

    def state(self) -> dict[str, NDArray[Any]]:
        """All that ``restore`` needs to send what would have been sent, as arrays: what clients hold, what
        was merged into the frozen weights, as factors, and the last change with those who can take it."""
        found: dict[str, NDArray[Any]] = {} if self.codec is None else {HELD: self.held}
        for a, b, merge in ((MERGED_A, MERGED_B, self.merged), (LAST_A, LAST_B, self._merge)):
            for layer, factors in merge.items():
                found |= {a + layer: factors.A, b + layer: factors.B}
        if self._change is not None:
            mask, payload = self._change
            found |= {MASK: np.frombuffer(mask.encode(), np.uint8), CHANGE: payload}
        follow = self._took_part if self._change or self._merge else frozenset()
        return found | {TOOK_PART + client: np.ones(1, np.float32) for client in follow}

    def restore(self, round_: int, vector: Vector, memory: NamedArrays) -> None:
        """Resume after a round from what ``state`` gave then."""
        self.round, self.vector, self._made = round_, vector, {}
        self.held = memory.get(HELD, vector)
        self.merged = merged_by(memory)
        self._merge = _factors(memory, LAST_A, LAST_B)
        self._took_part = frozenset(n.removeprefix(TOOK_PART) for n in memory if n.startswith(TOOK_PART))
        self._change = (memory[MASK].tobytes().decode(), memory[CHANGE]) if MASK in memory else None

    def sending(self, client: str, rank: int | None = None) -> Sending:
        """The broadcast to one client whose adapter has this rank (None: that of the layout). Clients that
        are sent the same are given the same object."""
        follows = client in self._took_part and bool(self._change or self._merge)
        if (follows, rank) not in self._made:
            self._made[follows, rank] = self._sending(follows, self.layout.limited(rank))
        return self._made[follows, rank]

    def _sending(self, follows: bool, part: Layout) -> Sending:
        index = self.layout.index(part)
        held = self.held if index is None else self.held[index]
        payload: NDArray[Any] = held
        fields = {"carried": self.layout.mask(self.layout.names)}
        if follows and self._change is not None and self.codec is not None:
            mask, payload = self._change
            fields = {"carried": mask, "codec": self.codec.name}
        arrays, ranks = [payload], list[int]()
        if merge := self._merge if follows else self.merged:
            ranks, vector = pack_factors({layer: (f.B, f.A) for layer, f in merge.items()}, part)
            arrays.append(vector)
        return Sending(
            arrays,
            {
                "layout": part.digest,
                "digest": vector_digest(held, *arrays[1:]),
                "base": self.round if follows else 0,
                "merge": ranks,
                **fields,
            },
        )


def merged_by(memory: NamedArrays) -> dict[str, Factors]:
    """By layer, what was merged into the frozen weights, by the memory of a checkpoint."""
    return _factors(memory, MERGED_A, MERGED_B)


def _factors(memory: NamedArrays, a: str, b: str) -> dict[str, Factors]:
    layers = [name.removeprefix(a) for name in memory if name.startswith(a)]
    return {layer: Factors(memory[a + layer], memory[b + layer]) for layer in layers}
