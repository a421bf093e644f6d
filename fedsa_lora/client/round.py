"""A client's round in NumPy: from a broadcast and what was kept to a start, and from what training made of it
to an upload and to what is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.client.personal import (
    COMMON,
    HELD,
    MERGED,
    PERSONAL,
    PHASE,
    RESIDUAL,
    START,
    TRAINED,
    Received,
    others,
    personal,
    receive,
    turn_split,
)
from fedsa_lora.client.workbench import Workbench
from fedsa_lora.errors import WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Arrays, NamedArrays, Vector, cut, digest, padded
from fedsa_lora.exchange.split import AdapterSplit
from fedsa_lora.exchange.vector import vector_digest
from fedsa_lora.learning.importance import Scoring
from fedsa_lora.learning.job import Outcome
from fedsa_lora.seeds import generator
from fedsa_lora.store import ClientState
from fedsa_lora.tasks.task import Examples


@dataclass(frozen=True)
class OpenRound:
    """A round as a client begins it.

    ``values`` are all tensors of its model, ``parts`` what becomes of each in this round. ``anchor`` are the
    common values of what it shares and ``others`` the other clients' mean of them, in the shapes of the
    resident model. ``state`` is what it kept.
    """

    round: int
    state: ClientState | None
    received: Received
    parts: AdapterSplit
    values: Arrays
    anchor: NamedArrays
    others: NamedArrays


@dataclass(frozen=True)
class ClosedRound:
    """A client's upload after a round, and the state that it keeps."""

    payload: NDArray[Any]
    header: wire.UploadHeader
    state: ClientState


class ClientRounds:
    """Opens and closes the rounds of one client; holds no state between them.

    ``forbid`` are roles and patterns of tensor names that this machine does not let out; ``salted`` makes
    the digest of private tensors what the server may have of it. Raises ConfigError for a pattern that
    matches no tensor of the model.
    """

    def __init__(
        self, client: str, bench: Workbench, salted: Callable[[str], str], forbid: Sequence[str] = ()
    ) -> None:
        self.client, self.bench, self.salted = client, bench, salted
        self.layout, self.pool = bench.layout(client), bench.pool(client)
        self.allowed = bench.split.allowed(self.layout, forbid, bench.model.frozen)

    @property
    def train(self) -> Examples:
        """The examples that this client trains on."""
        return self.bench.data(self.client).train

    @cached_property
    def scoring(self) -> Scoring | None:
        """Scores that the split decides from, if it does."""
        asked = self.bench.split.scoring(self.pool)
        return None if asked is None else Scoring(*asked)

    def open(
        self,
        header: wire.BroadcastHeader,
        parameters: list[NDArray[np.float32]],
        state: ClientState | None,
        mean_of: int,
    ) -> OpenRound:
        """Read a broadcast, whose common values are the mean of what clients had in round ``mean_of``.
        Raises SplitError and WireError as ``receive`` does."""
        received = receive(header, parameters, self.pool, self.allowed, state, self.bench.downlink)
        parts = turn_split(self.bench.split, self.layout, received.turn)
        anchor = self._common(received, parts.shared)
        rest = others(anchor, state, self._weight(header), mean_of)
        return OpenRound(header.round, state, received, parts, self.values(received, state), anchor, rest)

    def values(self, received: Received, state: ClientState | None) -> Arrays:
        """All tensors of the client's model; without a ``state`` those of a newcomer."""
        initial = cut(self.bench.initial, self.layout)
        return personal(self.bench.split, self.layout, received, initial, state)

    def close(
        self, opened: OpenRound, outcome: Outcome, own: NamedArrays, phase: NamedArrays, examples: int
    ) -> ClosedRound:
        """From what training made of a round to its upload, ``own`` being what the personalisation method
        keeps beside what is shared from, ``phase`` what a request remembers, and ``examples``
        the number that the round was for."""
        start, arrays = cut(outcome.start, self.layout), cut(outcome.values, self.layout)
        payload, residual = self._payload(opened, arrays)
        private = {name: arrays[name] for name in opened.parts.local}
        memory = self._memory(opened.received, start, arrays, residual)
        for name, array in own.items():  # what may be shared is not searched for in what leaves
            (memory if name in self.pool.names else private)[PERSONAL + name] = array
        memory |= {PHASE + name: array for name, array in phase.items()}
        header = self.header(
            opened.round,
            examples,
            payload,
            shared=self.pool.mask(opened.parts.shared),
            codec=self.bench.codec.name,
            counts=self._counts() if self.bench.counted and self.pool.count("head") else (),
            scores=() if outcome.scores is None else outcome.scores.means(),
            private_before=self._private_digest(start),
            private_after=self._private_digest(arrays),
        )
        return ClosedRound(payload, header, ClientState(opened.round, private, memory))

    def header(
        self, round_: int, examples: int, payload: NDArray[Any] | None = None, **fields: Any
    ) -> wire.UploadHeader:
        """The header of an answer of this client, with a payload or without any."""
        return wire.UploadHeader(
            client=self.client,
            round=round_,
            layout=self.pool.digest,
            digest=vector_digest(np.zeros(0, np.float32) if payload is None else payload),
            examples=examples,
            **fields,
        )

    def _payload(self, opened: OpenRound, arrays: NamedArrays) -> tuple[NDArray[Any], Vector | None]:
        """The difference from the broadcast in what is shared, after all stages, and what of the pool is
        then still to be sent."""
        parts, state = opened.parts, opened.state
        shared = self.pool.select(parts.shared)
        update = shared.pack({name: arrays[name] for name in shared.names})
        update -= self._of_pool(opened.received.common, parts.shared)
        rng = generator(self.bench.seed, "codec", self.client, opened.round)
        if not self.bench.codec.leaves:
            return self.bench.stages.apply(update, None, rng)
        unsent = np.zeros(self.pool.size, np.float32)
        if state is not None and RESIDUAL in state.memory:
            unsent[:] = state.memory[RESIDUAL]
        for name in parts.local & set(self.pool.names):
            unsent[self.pool.span(name)] = 0  # went into the client's own value, see personal()
        index = self.pool.index(shared)
        at = slice(None) if index is None else index
        payload, unsent[at] = self.bench.stages.apply(update, unsent[at], rng)
        return payload, unsent

    def _memory(
        self, received: Received, start: NamedArrays, arrays: NamedArrays, residual: Vector | None
    ) -> Arrays:
        """Memory for the next rounds, beside the private tensors."""
        memory = {MERGED + layer: array for layer, array in received.merged.items()}
        if residual is not None:
            memory[RESIDUAL] = residual
        if self.bench.downlink is not None:
            memory[HELD] = received.common
        common = self.pool.unpack(received.common)
        if self.bench.keep_trained:
            memory |= {TRAINED + name: arrays[name] for name in self.pool.names}
        for name in self.bench.split.degrees(self.layout):
            memory |= {START + name: start[name], TRAINED + name: arrays[name], COMMON + name: common[name]}
        return memory

    def _counts(self) -> list[int]:
        classes = len(self.bench.task.labels())
        return [int(n) for n in np.bincount(self.train.labels, minlength=classes)]

    def _private_digest(self, arrays: NamedArrays) -> str:
        """Digest of what is always local, read back from the model: not of what a round makes so."""
        return self.salted(digest({name: arrays[name] for name in self.bench.split(self.layout).local}))

    def _common(self, received: Received, names: frozenset[str]) -> NamedArrays:
        """The common values of some tensors, in the shapes of the resident model."""
        values = self.pool.select(names).unpack(self._of_pool(received.common, names))
        return padded(values, self.bench.model.layout.select(names))

    def _of_pool(self, vector: Vector, names: frozenset[str]) -> Vector:
        index = self.pool.index(self.pool.select(names))
        return vector if index is None else vector[index]

    def _weight(self, header: wire.BroadcastHeader) -> float:
        """The weight of this client in the mean that it was sent; 0 where no total was sent."""
        examples = len(self.train)
        if 0 < header.total < examples:
            raise WireError(f"a mean over {header.total} examples, of which this client alone has {examples}")
        return examples / header.total if header.total else 0.0
