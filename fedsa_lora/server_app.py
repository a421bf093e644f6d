"""Flower wiring of the server side."""

from __future__ import annotations

import logging
import shlex

from flwr.app import Context
from flwr.common import Parameters, Scalar
from flwr.server import Server, ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager
from flwr.server.history import History
from flwr.server.server import EvaluateResultsAndFailures, FitResultsAndFailures

from fedsa_lora.config.compose import as_handed
from fedsa_lora.federation import PASSED
from fedsa_lora.launch.flower_log import COMPLETE
from fedsa_lora.launch.resuming import to_run_again
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.server.build import build_for_run, skeleton
from fedsa_lora.server.finish import finish, to_the_end
from fedsa_lora.server.nodes import ClientsOfNodes
from fedsa_lora.settings import RunConfig
from fedsa_lora.simulation import composed, refuse_unsimulated
from fedsa_lora.tasks.inspection import inspect_task
from fedsa_lora.telemetry.journal import about
from strategies.round.admission import Res
from strategies.round.collection import EVALUATE, FIT, Collection, Ins, Phase

FitRound = tuple[Parameters | None, dict[str, Scalar], FitResultsAndFailures] | None
EvaluateRound = tuple[float | None, dict[str, Scalar], EvaluateResultsAndFailures] | None
log = logging.getLogger("flwr")


class RecordedServer(Server):
    """Flower's server loop; however it ends, the run directory records how."""

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        self.model = skeleton(config)
        strategy = build_for_run(config, self.model, directory)
        each = config.federation.clients_per_node
        manager = ClientsOfNodes(each) if each > 1 else SimpleClientManager()
        super().__init__(client_manager=manager, strategy=strategy)
        self.config, self.directory = config, directory
        self.further = strategy.further
        self.evaluation, self.name_of = strategy.evaluation, strategy.roster.name
        if config.federation.b_passing:
            log.warning("%s", PASSED)
            self.set_max_workers(1)  # one client after the other, in the order of their names

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        with to_the_end(self.directory):
            result = super().fit(num_rounds - self.directory.done, timeout)
            finish(self.config, self.directory, self.model)
        log.info("%s: %s", COMPLETE, self.directory.path)
        return result

    def fit_round(self, server_round: int, timeout: float | None) -> FitRound:
        """As Flower's, but that no client's failure is without a name and a deadline is one."""
        round_ = server_round + self.directory.done
        with about(round=round_, phase="fit"):
            asked = self.strategy.configure_fit(round_, self.parameters, self._client_manager)
            self.directory.check()  # before clients train for nothing
            results, failures = self._collection(FIT, round_, timeout).collect(asked)
            log.info("round %d: %d results and %d failures", round_, len(results), len(failures))
            return *self.strategy.aggregate_fit(round_, results, failures), ([], [])  # Flower would keep them

    def evaluate_round(self, server_round: int, timeout: float | None) -> EvaluateRound:
        """As Flower's. Where clients also train alone, each of its rounds has the time of one."""
        round_ = server_round + self.directory.done
        if timeout is not None and self.evaluation.trains_alone(round_):
            timeout *= 1 + self.evaluation.rounds
        with about(round=round_, phase="evaluate"):
            asked = self.strategy.configure_evaluate(round_, self.parameters, self._client_manager)
            self.directory.check()
            results, failures = self._collection(EVALUATE, round_, timeout).collect(asked)
            return *self.strategy.aggregate_evaluate(round_, results, failures), ([], [])

    def _collection(self, phase: Phase[Ins, Res], round_: int, seconds: float | None) -> Collection[Ins, Res]:
        retries = self.config.federation.retries
        return Collection(
            phase,
            round_,
            self.name_of,
            seconds=seconds,
            retries=retries,
            at_once=self.max_workers,
            further=self.further,
        )


def server_fn(context: Context) -> ServerAppComponents:
    overrides = str(context.run_config["overrides"])
    config = as_handed(overrides, composed(context.run_config), f"runs/{context.run_id}")
    refuse_unsimulated(config)
    inspect_task(config.task)
    command = to_run_again(shlex.split(overrides))
    if config.run.resume:
        directory = RunDirectory.resume(config, command)
        log.info("continuing after round %d of %s", directory.done, directory.path)
    else:
        directory = RunDirectory.create(config, command)
        log.info("writing to %s", directory.path)
    try:
        server = RecordedServer(config, directory)
    except BaseException:
        with to_the_end(directory):  # or the directory would say that the run is running
            raise
    limits = ServerConfig(config.federation.rounds, config.federation.round_timeout)
    return ServerAppComponents(server=server, config=limits)


app = ServerApp(server_fn=server_fn)
