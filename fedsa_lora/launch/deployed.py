"""A SuperLink that others started."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from flwr.proto.control_pb2 import ListRunsRequest
from httpx import HTTPError

from fedsa_lora.errors import RunError
from fedsa_lora.files import writing
from fedsa_lora.launch.connection import Connection
from fedsa_lora.launch.superlink import flower_command, flower_environment


class RunningSuperLink:
    """A SuperLink that was started elsewhere and continues afterwards: all that is ours is a Flower home."""

    def __init__(self, connection: Connection, log: Path) -> None:
        self.connection, self.log = connection, log
        self.env: dict[str, str] = {}
        self.private: Path | None = None

    def start(self) -> Path:
        """Return the private folder once the SuperLink has answered; RunError when it does not, or when
        names are bound to keys that it does not ask for."""
        client = self.connection.client()
        try:
            client.ListRuns(ListRunsRequest(limit=1))
            authenticated = not self.connection.by_key or self.connection.asks_for_keys()
        except HTTPError as error:
            raise RunError(
                f"no SuperLink answers at {self.connection.address}: {error}; check federation.superlink, "
                "and federation.root_certificates if its certificate is signed by your own authority"
            ) from error
        finally:
            client.close()
        if not authenticated:
            raise RunError(
                f"the SuperLink at {self.connection.address} admits nodes without a registered key, so "
                f"federation.registry could not verify names: start it with --enable-supernode-auth"
            )
        with writing(Path(tempfile.gettempdir())):
            self.private = Path(tempfile.mkdtemp(prefix="fsl-")).resolve()
        self.env = flower_environment() | {"FLWR_HOME": str(self.private / "flwr")}
        return self.private

    def exit_code(self) -> None:
        """Return None: whether it lives is seen by asking it."""

    def command(self, name: str) -> str:
        """Return the path of one of Flower's commands; RunError when it is not installed."""
        return flower_command(name, self.env)

    def close(self) -> None:
        """Remove the private folder. Harmless when called again."""
        if self.private is not None:
            shutil.rmtree(self.private, ignore_errors=True)
