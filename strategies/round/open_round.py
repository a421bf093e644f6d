"""A round while it is open: what its clients are asked for, and who could not be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import Layout, NamedArrays
from fedsa_lora.exchange.split import Turn
from strategies.round.admission import Remark

# By client in the memory of a checkpoint: 1 for each tensor that it shares, else 0; the same for those that
# it starts from its own value. Both as they are after the round, when all are evaluated.
SHARED, JOINING = "shared/", "joining/"


@dataclass(frozen=True)
class OpenRound:
    """Made when clients are asked to train, and kept until the next round is.

    ``turns`` are what all clients that are there are asked to share, ``asked`` those of them that were
    sampled, of whom the inner strategy ``needed`` so many. ``present`` clients are there, ``excluded`` were
    left out of the sample, and ``absent`` are the remarks on nodes that could not be asked at all.
    """

    number: int = 0
    turns: Mapping[str, Turn] = field(default_factory=dict)
    asked: Mapping[str, Turn] = field(default_factory=dict)
    needed: int = 0
    present: int = 0
    excluded: Sequence[str] = ()
    absent: Sequence[Remark] = ()

    def row(self, layout: Layout, adaptive: bool) -> dict[str, Any]:
        """The part of the round's row that is known beforehand; with the names that are shared where that are
        not always all."""
        shared = {name for turn in self.asked.values() for name in turn.shared}
        row: dict[str, Any] = {"shared": sum(spec.size for spec in layout if spec.name in shared)}
        if adaptive or shared != set(layout.names):
            masks = {client: layout.mask(turn.shared) for client, turn in self.asked.items()}
            if len(set(masks.values())) == 1:
                row["split"] = sorted(shared)
            else:
                row["split"] = masks
        return row | {"present": self.present, "excluded": self.excluded, "asked": len(self.asked)}


def asked_state(layout: Layout, turns: Mapping[str, Turn]) -> dict[str, NDArray[Any]]:
    """Turns as arrays for a checkpoint, (tensors,) each."""
    state: dict[str, NDArray[Any]] = {}
    for client, turn in turns.items():
        state[SHARED + client] = layout.bits(turn.shared)
        if turn.joining:
            state[JOINING + client] = layout.bits(turn.joining)
    return state


def asked_turn(layout: Layout, client: str, memory: NamedArrays) -> Turn | None:
    """The turn of a client by ``asked_state``; None where it is not in it."""
    if SHARED + client not in memory:
        return None
    shared = layout.of_bits(memory[SHARED + client])
    if JOINING + client not in memory:
        return Turn(shared)
    return Turn(shared, layout.of_bits(memory[JOINING + client]))
