"""A client's own model, put together from the common values and what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import SplitError, WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Arrays, Layout, NamedArrays, Vector, check_vector
from fedsa_lora.exchange.broadcast import changed, unpack_factors
from fedsa_lora.exchange.codec import Codec
from fedsa_lora.exchange.split import AdapterSplit, SplitPolicy, Turn
from fedsa_lora.store import ClientState

# What a client remembers beside its private tensors, by name in ``ClientState.memory``.
RESIDUAL = "residual"  # what its codec has not sent yet, (pool.size,)
HELD = "held"  # what it last received, (pool.size,)
MERGED = "merged/"  # by layer: B A that was merged into the frozen weight, (d_out, d_in)
PHASE = "phase/"  # by name: what a client remembers of the work that it was last requested to do
PERSONAL = "personal/"  # by tensor: its own model beside the common one, if it keeps one
# By soft tensor: a round's start, end and broadcast; TRAINED of all that may be shared where a run keeps it.
START, TRAINED, COMMON = "start/", "trained/", "common/"


@dataclass(frozen=True)
class Received:
    """A broadcast as a client reads it: what it is asked for, the common values (pool.size,) that it now
    holds, and what is merged into the frozen weights by layer, (d_out, d_in)."""

    turn: Turn
    common: Vector
    merged: Arrays


@dataclass(frozen=True)
class OwnModel:
    """A client's own model: ``common``, every tensor as its split has it; what its
    personalisation method keeps ``beside`` that; and the mean of the ``others``, for one that uses it."""

    common: NamedArrays
    beside: NamedArrays = field(default_factory=dict)
    others: NamedArrays = field(default_factory=dict)


def receive(
    header: wire.BroadcastHeader,
    arrays: list[NDArray[np.float32]],
    pool: Layout,
    allowed: frozenset[str],
    state: ClientState | None,
    downlink: Codec | None,
) -> Received:
    """Read a broadcast. Raises SplitError naming the tensors that it asks for and may not have, and
    WireError for one that does not fit what this client is, or last saw."""
    wire.check_layout(header, pool)
    turn = Turn(wire.names_of(header.shared, pool), wire.names_of(header.joining, pool))
    if refused := sorted(turn.shared - allowed):
        raise SplitError(
            f"the server asks for {refused}, which this client does not share: its split.allow, its head "
            f"policy or its node's forbid keeps them local"
        )
    factors = bool(header.merge)
    if len(arrays) != 1 + factors:
        raise WireError(f"expected {1 + factors} arrays, got {len(arrays)}")
    memory = _remembered(header, state)
    common = _common(header, arrays[0], pool, memory, downlink)
    merged = under(memory, MERGED)
    if factors:
        merged = _merged(header.merge, arrays[1], pool, merged)
    wire.check_digest(header, common, *arrays[1:])
    return Received(turn, common, merged)


def _remembered(header: wire.BroadcastHeader, state: ClientState | None) -> Arrays:
    """The values that the message is the change from: none for a whole broadcast."""
    if not header.base:
        return {}
    if state is None or state.round != header.base:
        seen = "nothing" if state is None else f"round {state.round}"
        raise WireError(
            f"the broadcast is a difference to that of round {header.base}, this client last kept {seen}: "
            f"it needs a full broadcast"
        )
    return state.memory


def _common(
    header: wire.BroadcastHeader,
    payload: NDArray[np.float32],
    pool: Layout,
    memory: Arrays,
    downlink: Codec | None,
) -> Vector:
    carried = pool.select(wire.names_of(header.carried, pool))
    if not header.codec:
        if len(carried.specs) != len(pool.specs):
            raise WireError("a full broadcast must contain every tensor that may be shared")
        return check_vector(payload, pool.size)
    if downlink is None or downlink.name != header.codec:
        expected = "none" if downlink is None else downlink.name
        raise WireError(f"the broadcast is encoded by {header.codec!r}, this client reads {expected}")
    if HELD not in memory:
        raise WireError(
            "the broadcast is a difference to values that this client lacks: it needs a full broadcast"
        )
    return changed(memory[HELD], pool, carried, payload, downlink)


def _merged(ranks: Sequence[int], vector: NDArray[np.float32], pool: Layout, before: Arrays) -> Arrays:
    """Add the factors of a message, layer by layer, to what was merged before."""
    merged = dict(before)
    for layer, (b, a) in unpack_factors(ranks, vector, pool).items():
        merged[layer] = b @ a if layer not in merged else merged[layer] + b @ a
    return merged


def turn_split(policy: SplitPolicy, layout: Layout, turn: Turn) -> AdapterSplit:
    """Every tensor in one set, in this round."""
    return policy(layout).narrowed(turn.shared, policy.idle)


def personal(
    policy: SplitPolicy,
    layout: Layout,
    received: Received,
    initial: NamedArrays,
    state: ClientState | None,
) -> Arrays:
    """Every tensor of the client's model, (as in ``layout``).

    What is shared is common; what is local comes from the client's own state; what is soft is mixed;
    what just became local continues from the common value with what was not sent of it yet. Without
    any own values a client starts from the common ones.
    """
    parts = turn_split(policy, layout, received.turn)
    pool = layout.select(policy(layout).shared)
    common = pool.unpack(received.common)
    own: Arrays = {} if state is None else state.tensors
    degrees = policy.degrees(layout)
    values: Arrays = {}
    for spec in layout:
        name = spec.name
        if name in parts.shared:
            starts_own = name in received.turn.joining and name in own
            values[name] = own[name] if starts_own else common[name]
            if name in degrees and state is not None:
                values[name] = _mixed(name, degrees[name], state.memory, common[name], spec.role == "head")
        elif name in own and name in parts.local:
            values[name] = own[name]
        elif name in common:
            values[name] = common[name] + _unsent(name, pool, state) if name in parts.local else common[name]
        else:
            values[name] = initial[name]
    return values


def under(memory: NamedArrays, prefix: str) -> Arrays:
    """The arrays whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in memory.items() if name.startswith(prefix)}


def beside(state: ClientState | None) -> Arrays:
    """Tensors that a personalisation method keeps beside the common model; none without one."""
    kept = {} if state is None else state.tensors | state.memory
    return under(kept, PERSONAL)


def of_phase(state: ClientState | None) -> Arrays:
    """Memory of the requests in the present phase; nothing at its beginning."""
    return {} if state is None else under(state.memory, PHASE)


def others(common: NamedArrays, state: ClientState | None, weight: float, round_: int) -> NamedArrays:
    """The mean of the other clients' values: (common - p own) / (1 - p), p = ``weight`` being its weight
    in what became common in a round. For a client alone or not in that mean, the common values."""
    own = beside(state)
    if state is None or state.round != round_ or not own or not 0 < weight < 1:
        return common
    return {
        name: ((mean - weight * own[name].astype(np.float64)) / (1 - weight)).astype(np.float32)
        for name, mean in common.items()
        if name in own
    }


def _mixed(
    name: str, degree: float, memory: Arrays, common: NDArray[np.float32], head: bool
) -> NDArray[np.float32]:
    """Between the client's own value, which it ended its last round with, and the common one.

    A factor keeps the deviation that it began that round with and adds ``degree`` times what its own
    update deviates from the common movement; a head's deviation decays by ``degree`` each round.
    """
    if TRAINED + name not in memory:
        return common
    trained = memory[TRAINED + name]
    if head:
        return common + np.float32(degree) * (trained - common)
    follows = memory[START + name] + (common - memory[COMMON + name])
    mixed: NDArray[np.float32] = follows + np.float32(degree) * (trained - follows)
    return mixed


def _unsent(name: str, pool: Layout, state: ClientState | None) -> NDArray[np.float32] | float:
    if state is None or RESIDUAL not in state.memory:
        return 0.0
    return pool.unpack(state.memory[RESIDUAL])[name]
