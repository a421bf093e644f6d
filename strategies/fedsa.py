"""FedSA: a Flower strategy around a Flower strategy, for messages that carry part of an adapter.

The inner strategy samples the clients and does the arithmetic, on plain float32 vectors of
values. ``FedSA`` says what is broadcast, admits or rejects what comes back, orders it by client,
and keeps the record of the round.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flwr.common import (
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy
from numpy.typing import NDArray

from fedsa_lora.errors import RunError, WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, Vector
from strategies.admission import Answer, Failure, admit
from strategies.cohort import Cohort
from strategies.traffic import message_bytes

log = logging.getLogger("flwr")


class Recorder(Protocol):
    """Where a round is written down."""

    def client(self, row: dict[str, Any]) -> None: ...
    def round(self, row: dict[str, Any]) -> None: ...
    def checkpoint(self, round_: int, layout: Layout, vector: Vector) -> None: ...


@dataclass(frozen=True)
class Evaluation:
    """When all clients are evaluated: every ``every`` rounds and in the last one.

    ``before``: clients also measure their own model before aggregation. ``reference``: in the
    last round each client also trains alone, to be compared with.
    """

    rounds: int
    every: int = 1
    before: bool = True
    reference: bool = True

    def due(self, round_: int) -> bool:
        return round_ == self.rounds or (self.every > 0 and round_ % self.every == 0)


class FedSA(Strategy):
    """FedSA-LoRA (arXiv:2410.01463) around any Flower strategy.

    Parameters
    ----------
    inner : Strategy
        Samples clients and aggregates vectors of values (layout.size,) in float32.
    layout : Layout
        The tensors that are shared; the server holds no other.
    initial : Vector
        Their common start, (layout.size,) float32.
    cohort : Cohort
        Who the clients are, and who takes part in a round.
    evaluation : Evaluation
        When all clients are evaluated, also those that were not sampled.
    recorder : Recorder
        Receives one row per client and phase, one per round, and the shared vector.
    min_results : float
        Share of the sampled clients that must answer well for a round to count; with fewer the
        run ends with RunError, which names who failed and why.
    """

    def __init__(
        self,
        inner: Strategy,
        layout: Layout,
        initial: Vector,
        *,
        cohort: Cohort,
        evaluation: Evaluation,
        recorder: Recorder,
        min_results: float = 1.0,
    ) -> None:
        self.inner, self.layout, self.shared = inner, layout, initial
        self.cohort, self.evaluation, self.recorder = cohort, evaluation, recorder
        self.min_results = min_results
        self._started = time.perf_counter()
        self._asked = 0  # clients that the present phase of the round waits for
        self._bytes_down = 0  # of the broadcast to one of them
        self._row: dict[str, Any] = {}

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """The common start: no client is asked, and no backbone is loaded."""
        return ndarrays_to_parameters([self.shared])

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """The inner strategy's choice of clients, each sent the shared vector and the header."""
        self._started = time.perf_counter()
        measure = self.evaluation.before and self.evaluation.due(server_round)
        header = wire.write_header(self._header(server_round, measure_before=measure))
        chosen = self.inner.configure_fit(
            server_round=server_round,
            parameters=ndarrays_to_parameters([self.shared]),
            client_manager=self.cohort.at(server_round, client_manager),
        )
        instructions = [(proxy, FitIns(ins.parameters, ins.config | header)) for proxy, ins in chosen]
        self._asked = len(instructions)
        self._bytes_down = message_bytes(instructions[0][1]) if instructions else 0
        return instructions

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[Failure[FitRes]]
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Admit, order by client, let the inner strategy aggregate, keep float32, record."""
        admission = admit(
            server_round, results, failures, self.cohort.name, needed=("loss",), decode=self._decode
        )
        admitted, rejected = admission.answers, admission.rejected
        rows = [self._fit_row(answer) for answer in admitted]
        self._row = {
            "round": server_round,
            "fit_clients": len(admitted),
            "fit_failures": len(rejected),
            "failures": rejected,
            "fit_seconds": time.perf_counter() - self._started,
            "loss": weighted_mean([(row["loss"], row["examples"]) for row in rows]) if rows else None,
            "accuracy_before": plain_mean([r["accuracy_before"] for r in rows if "accuracy_before" in r]),
            "bytes_up": admission.bytes_up,
            "bytes_down": self._bytes_down * self._asked,
        }
        for row in rows:
            self.recorder.client(row)
        self._demand_enough(len(admitted), rejected)
        decoded = [
            (a.proxy, FitRes(a.result.status, ndarrays_to_parameters([a.value]), a.header.examples, {}))
            for a in admitted
        ]
        parameters, metrics = self.inner.aggregate_fit(
            server_round=server_round, results=decoded, failures=[]
        )
        if parameters is not None:
            self.shared = self._sound(parameters_to_ndarrays(parameters))
        self.recorder.checkpoint(server_round, self.layout, self.shared)
        if not self.evaluation.due(server_round):
            self._close(self._row | {"evaluated": False})
        return ndarrays_to_parameters([self.shared]), metrics

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Every client that is there, with the vector just aggregated, when a round is due."""
        if not self.evaluation.due(server_round):
            return []
        last = server_round == self.evaluation.rounds
        header = self._header(server_round, reference=last and self.evaluation.reference)
        ins = EvaluateIns(ndarrays_to_parameters([self.shared]), dict(wire.write_header(header)))
        everyone = self.cohort.everyone(client_manager)
        self._asked, self._bytes_down = len(everyone), message_bytes(ins)
        return [(proxy, ins) for proxy in everyone]

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[Failure[EvaluateRes]],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Personalised accuracy over clients: mean, weighted by test examples, and the worst."""
        admission = admit(server_round, results, failures, self.cohort.name, needed=("loss", "accuracy"))
        admitted, rejected = admission.answers, admission.rejected
        rows = [self._evaluate_row(answer) for answer in admitted]
        for row in rows:
            self.recorder.client(row)
        self._demand_enough(len(admitted), rejected)
        row = self._row
        row["failures"] = row["failures"] + rejected
        row["bytes_up"] += admission.bytes_up
        row["bytes_down"] += self._bytes_down * self._asked
        accuracies = [(r["accuracy"], r["examples"]) for r in rows]
        summary = {
            "evaluated": True,
            "accuracy": plain_mean([accuracy for accuracy, _ in accuracies]),
            "accuracy_weighted": weighted_mean(accuracies),
            "accuracy_worst": min(accuracy for accuracy, _ in accuracies),
            "global_accuracy": weighted_mean(
                [(r["global_accuracy"], r["examples"]) for r in rows if "global_accuracy" in r]
            ),
        }
        self._close(row | summary)
        loss = weighted_mean([(r["loss"], r["examples"]) for r in rows])
        return loss, {"accuracy": summary["accuracy"] or 0.0}

    def evaluate(self, server_round: int, parameters: Parameters) -> None:
        """Nothing: the server holds no backbone and no data."""
        return

    def _header(self, round_: int, **asked: bool) -> wire.BroadcastHeader:
        return wire.BroadcastHeader(
            round=round_, layout=self.layout.digest, digest=wire.vector_digest(self.shared), **asked
        )

    def _decode(self, header: wire.UploadHeader, result: FitRes) -> Vector:
        """The client's values: what was broadcast plus the difference it sent."""
        update = wire.read_vector(result.parameters.tensors, self.layout)
        wire.check_belongs(header, update, self.layout)
        return self.shared + update

    def _sound(self, aggregated: list[NDArray[Any]]) -> Vector:
        """What the inner strategy made, as float32. Raises RunError when it is not such a vector."""
        try:
            return wire.check_vector([a.astype(np.float32, copy=False) for a in aggregated], self.layout)
        except WireError as error:
            raise RunError(
                f"strategy {type(self.inner).__name__} made an unusable aggregate: {error}"
            ) from None

    def _demand_enough(self, admitted: int, rejected: list[str]) -> None:
        for line in rejected:
            log.warning("%s", line)
        if admitted < self.min_results * self._asked or not admitted:
            raise RunError(
                f"{self._asked - admitted} of {self._asked} clients failed, and "
                f"federation.min_results={self.min_results:g} asks for more: " + "; ".join(rejected)
            )

    def _fit_row(self, answer: Answer[FitRes]) -> dict[str, Any]:
        return self._client_row(answer) | {
            "phase": "fit",
            "private_before": answer.header.private_before,
            "private_after": answer.header.private_after,
        }

    def _evaluate_row(self, answer: Answer[EvaluateRes]) -> dict[str, Any]:
        return self._client_row(answer) | {"phase": "evaluate"}

    def _client_row(self, answer: Answer[Any]) -> dict[str, Any]:
        header = answer.header
        return {
            **header.report,
            "round": header.round,
            "client": header.client,
            "examples": header.examples,
            "bytes_up": answer.size,
            "bytes_down": self._bytes_down,
        }

    def _close(self, row: dict[str, Any]) -> None:
        self.recorder.round(row | {"seconds": time.perf_counter() - self._started})


def plain_mean(values: Sequence[float]) -> float | None:
    """Mean; None when there are no values."""
    return float(np.mean(values)) if values else None


def weighted_mean(pairs: Sequence[tuple[float, int]]) -> float | None:
    """Mean of (value, weight) pairs; None when there are none."""
    if not pairs:
        return None
    values, weights = zip(*pairs, strict=True)
    return float(np.average(values, weights=weights))
