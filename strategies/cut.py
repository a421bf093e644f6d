"""SplitFedSA: FedSA for split learning: the server computes and trains the middle of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol

from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters, Scalar
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import NamedArrays, Vector
from strategies.fedsa import FedSA
from strategies.round.admission import Admission, Failure
from strategies.rules.updates import Update


class Middle(Protocol):
    """The server's part of a model; ``fedsa_lora.server.trunk`` has one."""

    up: Counter[str]  # bytes of the present phase, by what they are
    down: Counter[str]
    losses: dict[str, list[float]]  # of each step, by client

    def begin(self, round_: int, *, training: bool) -> None: ...
    def answer(self, client: str, entries: Mapping[str, Any]) -> dict[str, str | bytes] | None: ...
    def learn(self, examples: Mapping[str, int]) -> None: ...
    def state(self) -> dict[str, NDArray[Any]]: ...
    def restore(self, memory: NamedArrays) -> None: ...


class SplitFedSA(FedSA):
    """FedSA over the clients' parts of a split model; ``middle`` is the server's part.

    A round is an exchange with each client, step by step, at whose end the client's part is shared as in
    FedSA.
    """

    def __init__(self, *args: Any, middle: Middle, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.middle = middle

    def further(self, client: str, result: FitRes | EvaluateRes) -> dict[str, Scalar] | None:
        """The next message to a client after its answer; None where that was its last."""
        if "cut" not in result.metrics:
            return None
        entries = self.middle.answer(client, result.metrics)
        return None if entries is None else dict(entries)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        self.middle.begin(server_round, training=True)
        return super().configure_fit(server_round, parameters, client_manager)

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        self.middle.begin(server_round, training=False)
        return super().configure_evaluate(server_round, parameters, client_manager)

    def memory(self) -> dict[str, NDArray[Any]]:
        return super().memory() | self.middle.state()

    def restore(self, round_: int, common: Vector, memory: NamedArrays) -> None:
        super().restore(round_, common, memory)
        self.middle.restore(memory)

    def _take(self, round_: int, updates: Sequence[Update]) -> None:
        super()._take(round_, updates)
        self.middle.learn({update.client: update.examples for update in updates})
        steps = zip(*self.middle.losses.values(), strict=False)
        self.ledger.aggregated({"step_losses": [fmean(losses) for losses in steps]})
        self._exchanged("fit")

    def _skip(self, round_: int, admission: Admission[FitRes]) -> None:
        super()._skip(round_, admission)
        self._exchanged("fit")

    def _exchanged(self, phase: str) -> None:
        self.ledger.exchanged(phase, self.middle.up, self.middle.down)

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[Failure[EvaluateRes]],
    ) -> tuple[float | None, dict[str, Scalar]]:
        self._exchanged("evaluate")
        return super().aggregate_evaluate(server_round, results, failures)
