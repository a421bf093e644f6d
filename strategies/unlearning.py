"""A wrapper of any Flower strategy: it asks target clients to forget, and other clients for their part, by
phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters, Scalar
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy

from fedsa_lora.exchange.wire import REQUEST
from fedsa_lora.phases import Phases
from strategies.rules.flower import forget_rounds


class Unlearning(Strategy):
    """Asks clients for their part in the phase of a round; all else is done by the inner strategy.

    Every connected target takes part in each round of unlearning, sampled or not. A server optimizer
    begins each phase without what it remembers of the one before: its momentum would keep learning what is
    to be forgotten.

    Parameters
    ----------
    strategy : Strategy
        Any of Flower's, such as FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi or FedProx.
    phases : Phases
        The rounds of each phase, and the targets.
    name : callable
        The client behind a node.
    """

    linear = averages = stateless = True  # with what it wraps, which is asked as well
    signed_loss = True  # of what is to be forgotten the loss grows

    def __init__(self, strategy: Strategy, phases: Phases, name: Callable[[ClientProxy], str]) -> None:
        self.strategy, self.phases, self.name = strategy, phases, name

    def needs(self, server_round: int) -> frozenset[str]:
        """The clients whose answers a round requires: the targets, in a round of unlearning."""
        return self.phases.targets if self.phases.of(server_round) == "unlearn" else frozenset()

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        return self.strategy.initialize_parameters(client_manager)

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """The choice of the strategy within, with the targets in a round of unlearning, ordered by name."""
        if self.phases.begins(server_round):
            forget_rounds(self.strategy)
        chosen = self.strategy.configure_fit(server_round, parameters, client_manager)
        there = {self.name(proxy): (proxy, ins) for proxy, ins in chosen}
        if self.phases.of(server_round) == "unlearn" and chosen:
            like = chosen[0][1]
            for proxy in client_manager.all().values():
                if self.name(proxy) in self.phases.targets:
                    there.setdefault(self.name(proxy), (proxy, like))
        return [
            (proxy, self._worded(server_round, name, ins)) for name, (proxy, ins) in sorted(there.items())
        ]

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """The aggregate of the strategy within."""
        return self.strategy.aggregate_fit(server_round, results, failures)

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        return self.strategy.configure_evaluate(server_round, parameters, client_manager)

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        return self.strategy.aggregate_evaluate(server_round, results, failures)

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, dict[str, Scalar]] | None:
        return self.strategy.evaluate(server_round, parameters)

    def _worded(self, round_: int, client: str, ins: FitIns) -> FitIns:
        asked = self.phases.asked(round_, client)
        if asked is None:
            return ins
        return replace(ins, config={**ins.config, REQUEST: str(asked)})
