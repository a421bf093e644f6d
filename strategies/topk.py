"""TopKFedSA: aggregation of sparse updates, at a cost that grows with the values received."""

from __future__ import annotations

from typing import Any

from flwr.server.strategy import Strategy

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, Vector
from strategies.fedsa import FedSA
from strategies.rules.flower import OfMean


class TopKFedSA(FedSA):
    """FedSA for a sparse codec: no single update becomes dense.

    Received values are summed by position, and the inner strategy gets the mean.
    Takes the arguments of FedSA. Raises ConfigError for a codec that is not sparse, and for a strategy
    that needs each client's whole vector; use ``FedSA`` for those, at the cost of dense updates.
    """

    def __init__(self, inner: Strategy, layout: Layout, initial: Vector, **arguments: Any) -> None:
        super().__init__(inner, layout, initial, **arguments)
        if not self.codec.sparse:
            raise ConfigError(f"TopKFedSA needs a sparse codec, got {self.codec.name!r}: use FedSA")
        if not isinstance(self.rule, OfMean):
            raise ConfigError(
                f"TopKFedSA cannot hand sparse updates to {type(inner).__name__}, which compares whole "
                "vectors; expected one of FedAvg, FedProx, FedAvgM, FedAdam, FedYogi, FedAdagrad, or that "
                "declares linear = True; or use FedSA"
            )
