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
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config)
    server(InProcessGrid(nodes, run_config, app=client), context)
    return Path(str(run_config["run.dir"]))
