"""From turns to messages: what each client is sent when it is asked to train or to evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.common import EvaluateIns, FitIns, Scalar, ndarrays_to_parameters

from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.exchange.split import Turn
from strategies.audience import Audience
from strategies.round.ledger import Ledger
from strategies.round.totals import Totals
from strategies.round.traffic import message_bytes

Ins = TypeVar("Ins", FitIns, EvaluateIns)


@dataclass(frozen=True)
class Broadcaster:
    """Writes the broadcasts of a run, which its ledger counts; its fields are those of ``FedSA``."""

    layout: Layout
    ranks: Mapping[str, int]
    audience: Audience
    totals: Totals
    ledger: Ledger
    run: str
    resumed: int

    def __call__(
        self,
        kind: type[Ins],
        turns: Mapping[str, Turn],
        configs: Sequence[Mapping[str, Scalar]],
        **asked: Any,
    ) -> list[Ins]:
        """The broadcast to each client of ``turns``, made once for all that are sent the same.

        ``configs`` are what the inner strategy adds for each client, ``asked`` the fields of the header that
        are the same for all.
        """
        made: dict[Any, tuple[Ins, int]] = {}
        found = {}
        for (client, turn), config in zip(turns.items(), configs, strict=True):
            rank = self.ranks.get(client)
            sending = self.audience.downlink(client).sending(client, rank)
            total = self.totals.of(client)
            key = turn, id(sending), total, tuple(sorted(config.items()))
            if key not in made:
                layout = self.layout.limited(rank)
                header = wire.BroadcastHeader(
                    shared=layout.mask(turn.shared),
                    joining=layout.mask(turn.joining),
                    total=total,
                    run=self.run,
                    resumed=wire.stretch(self.resumed),
                    **sending.fields,
                    **asked,
                )
                entries = {**config, **wire.write_header(header)}
                message = kind(ndarrays_to_parameters(sending.arrays), entries)
                made[key] = message, message_bytes(message)
            found[client] = made[key]
        self.ledger.sends({client: size for client, (_, size) in found.items()})
        return [message for message, _ in found.values()]
