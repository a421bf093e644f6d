"""From an upload to an update: what a client sent, if it is exactly what that client was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.common import FitRes

from fedsa_lora.errors import WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, check_vector
from fedsa_lora.exchange.codec import Codec
from fedsa_lora.exchange.split import Turn
from fedsa_lora.exchange.stages import upload
from fedsa_lora.exchange.vector import check_size, read_array
from strategies.rules.updates import Update


@dataclass(frozen=True)
class Decoder:
    """Reads uploads of a run; its fields are those of ``FedSA``, and how many importance ``scores`` its plan
    asks for."""

    layout: Layout
    codec: Codec
    ranks: Mapping[str, int]
    classes: int
    uniform: bool
    scores: int

    def __call__(self, turns: Mapping[str, Turn], header: wire.UploadHeader, result: FitRes) -> Update:
        """The client's update, sparse where it was sent so; ``turns`` are what each client was asked for.

        Raises WireError unless it is exactly that.
        """
        if header.client not in turns:
            raise WireError("was not asked this round")
        if len(header.scores) != self.scores:
            raise WireError(f"contains {len(header.scores)} importance scores, expected {self.scores}")
        rank = self.ranks.get(header.client)
        whole = self.layout.limited(rank)
        wire.check_layout(header, whole)
        shared = wire.names_of(header.shared, whole)
        self._check(header, turns[header.client], shared)
        part = whole.select(shared)
        payload = read_array(result.parameters.tensors, self.codec.dtype, self.codec.max_bytes(part.size))
        wire.check_digest(header, payload)
        sent = upload(self.codec).undo(payload, part.size)
        check_vector(sent.values, sent.values.size)
        check_size(sent.values)
        index, positions = self.layout.index(part), sent.positions
        if index is not None:
            positions = index if positions is None else index[positions]
        return Update(
            client=header.client,
            examples=1 if self.uniform else header.examples,
            shared=shared,
            positions=positions,
            values=sent.values,
            loss=header.report.get("loss", 0.0),
            rank=rank,
            counts=tuple(header.counts),
            scores=tuple(header.scores),
        )

    def _check(self, header: wire.UploadHeader, turn: Turn, shared: frozenset[str]) -> None:
        if header.codec != self.codec.name:
            raise WireError(
                f"encoded by {header.codec!r}, expected {self.codec.name!r}: both sides must agree"
            )
        if shared != turn.shared:
            asked = sorted(turn.shared ^ shared)
            raise WireError(f"shares other tensors than requested; the difference is {asked}")
        counts, total = header.counts, header.examples if self.classes else 0
        if len(counts) != self.classes or sum(counts) != total:
            raise WireError(
                f"reports {len(counts)} class counts, expected {self.classes} with the sum {total}"
            )
