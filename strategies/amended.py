"""Flower's strategies where they need a hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.common import FitRes, Parameters, Scalar, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Bulyan as FlowerBulyan
from flwr.server.strategy import QFedAvg as FlowerQFedAvg

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
        """Raises RunError for a result without a loss; one below 0 counts as 0.

        Step: sum_k F_k^q g_k / sum_k (q F_k^(q-1) |g_k|^2 + F_k^q / rate), with both sums divided by
        the largest F^q, so that no loss that a client may tell overflows.
        """
        if self.pre_weights is None:
            raise RunError("QFedAvg aggregates before it was configured: call configure_fit first")
        (before,), rate, q = self.pre_weights, self.learning_rate, self.q_param
        losses = [_loss(result) for _, result in results]
        total, scale = np.zeros(before.shape), 0.0
        for (_, result), loss in zip(results, losses, strict=True):
            (after,) = parameters_to_ndarrays(result.parameters)
            gradient = (before.astype(np.float64) - after) / rate
            weight = (loss / max(losses)) ** q
            total += weight * gradient
            scale += weight * (q * float(gradient @ gradient) / loss + 1 / rate)
        return ndarrays_to_parameters([before - total / scale]), {}


def _loss(result: FitRes) -> float:
    loss = result.metrics.get("loss")
    if not isinstance(loss, int | float):
        raise RunError(f"QFedAvg needs the training loss of each client, got {loss!r}")
    return max(float(loss), 0.0) + 1e-10
