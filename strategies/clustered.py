"""ClusteredFedSA: clients whose updates are alike share among themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flwr.server.strategy import Strategy

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, Vector
from fedsa_lora.exchange.codec import Codec
from strategies.audience import Groups
from strategies.fedsa import FedSA
from strategies.grouping import Clusters
from strategies.rules import STATELESS


class ClusteredFedSA(FedSA):
    """FedSA for the audience of ``Groups``: one common vector for each group of clients.

    Takes the arguments of FedSA and how to group. A round is aggregated group by group, each update to
    the vector that it was made from, and then clients are grouped anew. ``shared`` is the vector of the
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
        if faults := [*ungroupable(type(inner), downlink)]:
            raise ConfigError("; ".join(faults))
        super().__init__(inner, layout, initial, audience=Groups(clusters, layout, initial), **arguments)


def ungroupable(inner: type[Strategy], downlink: Codec | None) -> Iterator[str]:
    """One line for each choice that cannot be had together with groups."""
    if inner not in STATELESS:
        yield (
            f"clusters: {inner.__name__} cannot be asked for one group after the other: it remembers earlier "
            "rounds, compares clients or combines factors; expected strategy=fedavg or fedprox"
        )
    if downlink is not None:
        yield "clusters: clients change groups, so broadcasts cannot be changes: set downlink=whole"
