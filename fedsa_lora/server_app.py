"""Flower wiring of the server side."""

from __future__ import annotations

from flwr.app import Context
from flwr.server import Server, ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager
from flwr.server.history import History

from fedsa_lora import assemble
from fedsa_lora.config import RunConfig, load
from fedsa_lora.runs.finish import finish
from fedsa_lora.runs.rundir import RunDirectory


class RecordedServer(Server):
    """Flower's server loop; however it ends, the run directory tells how."""

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        strategy = assemble.strategy(config, directory)
        super().__init__(client_manager=SimpleClientManager(), strategy=strategy)
        self.config, self.directory = config, directory

    def fit(self, num_rounds: int, timeout: float | None) -> tuple[History, float]:
        with self.directory.recording():
            result = super().fit(num_rounds, timeout)
        finish(self.config, self.directory)
        return result


def server_fn(context: Context) -> ServerAppComponents:
    config = load(str(context.run_config["overrides"]), default_dir=f"runs/{context.run_id}")
    directory = RunDirectory.create(config)
    server = RecordedServer(config, directory)
    limits = ServerConfig(config.federation.rounds, config.federation.round_timeout)
    return ServerAppComponents(server=server, config=limits)


app = ServerApp(server_fn=server_fn)
