"""AdaptiveFedSA: the server decides each round's split from what the clients report."""

from __future__ import annotations

from typing import Any

from flwr.server.strategy import Strategy

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, Vector
from fedsa_lora.exchange.split import SplitPolicy
from strategies.fedsa import FedSA


class AdaptiveFedSA(FedSA):
    """FedSA with a split that follows importance scores, or the variance between clients.

    Takes the arguments of FedSA, with ``split`` an ``Importance``, a ``LeastVariance`` or another for which
    ``strategies.plans.plan`` knows a plan. The split of a round is announced in its broadcast and recorded in
    its row. Raises ConfigError for a fixed split; use ``FedSA`` for those (it takes adaptive ones too).
    """

    def __init__(
        self, inner: Strategy, layout: Layout, initial: Vector, *, split: SplitPolicy, **arguments: Any
    ) -> None:
        if not split.adaptive:
            raise ConfigError(f"AdaptiveFedSA needs an adaptive split, got {type(split).__name__}")
        super().__init__(inner, layout, initial, split=split, **arguments)
