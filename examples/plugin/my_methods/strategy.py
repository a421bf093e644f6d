"""A Flower strategy, wrapped by FedSA: computes the common values of a round from those of the clients."""

from dataclasses import replace
from math import sqrt
from typing import Any

from flwr.common import FitRes
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg


class RootWeighted(FedAvg):
    """FedAvg that weights a client by the square root of its number of examples."""

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[Any]
    ) -> Any:
        weighed = []
        for client, result in results:
            weight = round(1000 * sqrt(result.num_examples))
            weighed.append((client, replace(result, num_examples=weight)))
        return super().aggregate_fit(server_round, weighed, failures)
