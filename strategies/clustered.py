"""ClusteredFedSA: clients whose updates are alike share among themselves."""

from __future__ import annotations

from typing import Any

from flwr.server.strategy import Strategy

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, Vector
from fedsa_lora.exchange.codec import Codec
from strategies.audience import Groups
from strategies.fedsa import FedSA
from strategies.plans.grouping import Clusters, ungroupable
from strategies.rules.abilities import can


class ClusteredFedSA(FedSA):
    """FedSA for the audience of ``Groups``: one common vector for each group of clients.

    Takes the arguments of FedSA and how to group. A round is aggregated group by group, each update to
    the vector that it was made from, and then clients are grouped anew. ``common`` is the vector of the
    largest group. Clients need not know. Raises ConfigError for what does not go together with groups.
    """

    def __init__(
        self,
        inner: Strategy,
        layout: Layout,
        initial: Vector,
        *,
        clusters: Clusters,
        downlink: Codec | None = None,
        **arguments: Any,
    ) -> None:
        if faults := [*ungroupable(type(inner).__name__, can(inner, "stateless"), downlink)]:
            raise ConfigError("; ".join(faults))
        super().__init__(inner, layout, initial, audience=Groups(clusters, layout, initial), **arguments)
