"""ClusteredFedSA: clients with similar updates share within their group."""

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

    Takes the arguments of FedSA and those of the grouping. A round is aggregated group by group, each update
    to the vector that it started from, and then clients are regrouped. ``common`` is the vector of the
    largest group. Clients need no change. Raises ConfigError for settings that groups do not support.
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
