"""Flower's strategies where they need a hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.common import FitRes, Parameters, Scalar, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Bulyan as FlowerBulyan
from flwr.server.strategy import QFedAvg as FlowerQFedAvg
from flwr.server.strategy.aggregate import aggregate_qffl

from fedsa_lora.errors import RunError


class Bulyan(FlowerBulyan):
    """Bulyan (arXiv:1802.07927) over Krum, which Flower's own cannot call without ``to_keep``.

    Needs at least 4 f + 3 results with f = ``num_malicious_clients``.
    """

    def __init__(self, **fedavg: Any) -> None:
        super().__init__(to_keep=0, **fedavg)


class QFedAvg(FlowerQFedAvg):
    """q-FedAvg (arXiv:1905.10497, algorithm 2): clients with a larger loss F_k weigh more.

    Flower's own takes one loss, of a central evaluation, for all clients, which an adapter's server
    cannot make; here each client's mean training loss of the round stands for F_k. q = 0 weighs all
    clients alike. ``qffl_learning_rate`` is 1 / L, the clients' step size.
    """

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Raises RunError for a result without a loss."""
        if self.pre_weights is None:
            raise RunError("QFedAvg aggregates before it was configured: call configure_fit first")
        (before,), rate = self.pre_weights, self.learning_rate
        deltas, scales = [], []
        for _, result in results:
            (after,) = parameters_to_ndarrays(result.parameters)
            loss = result.metrics.get("loss")
            if not isinstance(loss, float) or loss < 0:
                raise RunError(f"QFedAvg needs the training loss of each client, got {loss!r}")
            gradient, loss = (before - after) / rate, loss + 1e-10
            deltas.append([loss**self.q_param * gradient])
            norm = float(np.square(gradient, dtype=np.float64).sum())
            scales.append(self.q_param * loss ** (self.q_param - 1) * norm + loss**self.q_param / rate)
        return ndarrays_to_parameters(aggregate_qffl(self.pre_weights, deltas, scales)), {}
