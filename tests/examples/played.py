"""The apps of a user, played in this process as a simulation does."""

from pathlib import Path

from flwr.app import Context, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.server import ServerApp

from fedsa_lora.runs.inprocess import InProcessGrid
from fedsa_lora.simulation import SIMULATION


def play(client: ClientApp, server: ServerApp, nodes: int, run_config: UserConfig, patch) -> Path:
    """The run directory of a run with these apps; ``patch`` is pytest's monkeypatch."""
    patch.setenv(SIMULATION, "1")
    return played(server, InProcessGrid(nodes, run_config, app=client), run_config)


def deploy(client: ClientApp, server: ServerApp, nodes: int, run_config: UserConfig, stores: Path) -> Path:
    """The run directory of a run on nodes that keep what is theirs in ``stores``."""
    grid = InProcessGrid(nodes, run_config, app=client)
    for context in grid._contexts.values():
        context.node_config |= {"store": str(stores), "client-id": f"hospital-{context.node_id}"}
    return played(server, grid, run_config)


def played(server: ServerApp, grid: InProcessGrid, run_config: UserConfig) -> Path:
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config)
    server(grid, context)
    return Path(str(run_config["run.dir"]))
