"""Flower's strategies with corrections."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_high, median_low
from typing import Any

import numpy as np
from flwr.common import FitRes, Parameters, Scalar, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Bulyan as FlowerBulyan
from flwr.server.strategy import QFedAvg as FlowerQFedAvg

from fedsa_lora.errors import RunError

SMALLEST = 1e-200  # that a loss counts for where something is divided by it
SOUND = 100.0  # medians of a round: a loss from this part of one to as many of them is taken as it is


class Bulyan(FlowerBulyan):
    """Bulyan (arXiv:1802.07927) over Krum, which Flower's own cannot call without ``to_keep``.

    Needs at least 4 f + 3 results with f = ``num_malicious_clients``.
    """

    def __init__(self, **fedavg: Any) -> None:
        super().__init__(to_keep=0, **fedavg)


class QFedAvg(FlowerQFedAvg):
    """q-FedAvg (arXiv:1905.10497, algorithm 2): clients with a larger loss F_k weigh more.

    Flower's own takes one loss, of a central evaluation, for all clients, which an adapter's server
    cannot make; here each client's mean training loss of the round stands for F_k, in the paper its loss
    before it trained. q = 0 weighs all clients alike. ``qffl_learning_rate`` is 1 / L, the clients' step
    size.

    No single loss decides a step. Beyond ``SOUND`` medians of the round F_k counts for so many. Steps are
    divided by the sum of h_k = q F_k^(q-1) |g_k|^2 + L F_k^q, which for F_k -> 0 and q < 1 would be without
    bound; here F_k^(q-1) is F_k^q / max(F_k, median / SOUND). So a client whose loss is 0 counts as if it
    were not there, and no loss makes |g_k|^2 weigh more than SOUND^(1-q) times what it does at the median.
    """

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Raises RunError for a result without a loss; one below 0 counts as 0.

        Step: sum_k F_k^q g_k / sum_k (q F_k^(q-1) |g_k|^2 + F_k^q / rate), with both sums divided by
        the largest F^q, so that nothing overflows. Without any loss there is nothing to learn, and no step.
        """
        if self.pre_weights is None:
            raise RunError("QFedAvg aggregates before it was configured: call configure_fit first")
        (before,), rate, q = self.pre_weights, self.learning_rate, self.q_param
        losses = [_loss(result) for _, result in results]
        if q and not any(losses):
            return ndarrays_to_parameters([before]), {}
        least, most = sound_losses(losses)
        largest = min(max(losses), most) or 1.0
        total, scale = np.zeros(before.shape), 0.0
        for (_, result), loss in zip(results, losses, strict=True):
            (after,) = parameters_to_ndarrays(result.parameters)
            gradient = (before.astype(np.float64) - after) / rate
            weight = (min(loss, most) / largest) ** q
            total += weight * gradient
            scale += weight * (q * float(gradient @ gradient) / max(loss, least) + 1 / rate)
        return ndarrays_to_parameters([before - total / scale]), {}


def sound_losses(losses: Sequence[float]) -> tuple[float, float]:
    """The least and the largest loss that is taken as it is. Losses of 0 are not in the median. Of two
    medians the larger bounds from below and the smaller from above: one client of two sets neither."""
    positive = [loss for loss in losses if loss > 0] or [1.0]
    return max(SMALLEST, median_high(positive) / SOUND), median_low(positive) * SOUND


def _loss(result: FitRes) -> float:
    loss = result.metrics.get("loss")
    if not isinstance(loss, int | float):
        raise RunError(f"QFedAvg needs the training loss of each client, got {loss!r}")
    return max(float(loss), 0.0)
