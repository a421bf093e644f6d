"""A deployed federation on one machine: a SuperLink and SuperNodes as processes on loopback."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

import fedsa_lora
from fedsa_lora.deployment.certificates import REGISTRY, make_certificates
from fedsa_lora.errors import RunError
from fedsa_lora.launch.connection import Connection
from fedsa_lora.launch.superlink import (
    TOKEN_VARIABLE,
    end_run,
    flower_command,
    flower_environment,
    free_port,
    listens,
    start_guard,
)

STARTING_SECONDS = 900  # more than a node needs on a machine that is busy with others
CLI = [sys.executable, "-m", "fedsa_lora.cli"]


class Loopback:
    """A SuperLink and its nodes; all ends with the ``with`` block, or with this process.

    ``logs`` receives what each process prints. ``secure``: TLS, and only nodes that were registered.
    ``database``: the SuperLink has one on disk, and finds its nodes again after a restart. All else
    (certificates, that database, the nodes' stores) lies in ``private``, which goes at the end.
    """

    def __init__(self, logs: Path, secure: bool = True, database: bool = True) -> None:
        self.logs, self.secure, self.database = logs.resolve(), secure, database
        self.logs.mkdir(parents=True, exist_ok=True)
        self.private = Path(tempfile.mkdtemp(prefix="fsl-")).resolve()
        self.keys = self.private / "keys"
        self.port = free_port()
        self._token = uuid.uuid4().hex
        self.env = flower_environment() | {
            TOKEN_VARIABLE: self._token,
            "FLWR_HOME": str(self.private / "flwr"),
            "PYTHONPATH": str(Path(fedsa_lora.__file__).parents[1]),  # the same code in every process
        }
        self._guard = start_guard(self._token, self.private)

    def __enter__(self) -> Self:
        try:
            if self.secure:
                make_certificates(self.keys)
            (self.private / "flwr").mkdir()
            (self.private / "flwr" / "config.toml").write_text(self.connection.toml("loopback"))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def connection(self) -> Connection:
        """Connection to the SuperLink."""
        certificates = self.keys / "ca.crt" if self.secure else None
        return Connection(f"127.0.0.1:{self.port}", certificates, insecure=not self.secure)

    def superlink(self) -> subprocess.Popen[bytes]:
        """Start the SuperLink, or start it again on its database. Raises RunError when it does not listen."""
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--disable-runtime-dependency-installation"]
        if self.database:
            words += ["--database", str(self.private / "superlink.db")]
        if self.secure:
            words += ["--ssl-ca-certfile", str(self.keys / "ca.crt")]
            words += ["--ssl-certfile", str(self.keys / "server.crt")]
            words += ["--ssl-keyfile", str(self.keys / "server.key"), "--enable-supernode-auth"]
        else:
            words.append("--insecure")
        process = self.start("superlink", [flower_command("flower-superlink", self.env), *words])
        if not listens(process, self.port):
            raise RunError(f"the SuperLink did not start: see {self.logs / 'superlink.log'}")
        return process

    def register(self, name: str) -> None:
        """Make a node's key and register it with the SuperLink. Raises RunError when it refuses."""
        make_certificates(self.keys, nodes=[name])
        command = [flower_command("flwr", self.env), "supernode", "register", str(self.keys / f"{name}.pub")]
        done = subprocess.run([*command, "loopback"], env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"node {name} was not registered: {done.stderr or done.stdout}")

    def node(
        self,
        name: str,
        config: str = "",
        *words: str,
        resident: bool = True,
        connection: Connection | None = None,
        says: str | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start the node of a client. ``config`` is added to its node config, ``words`` to its command line;
        without ``resident`` Flower starts a process for each message. ``connection``: another one than it
        should take. ``says``: another client-id than its name, which its key and its store have."""
        connection = connection or self.connection
        words += ("--superlink", connection.address)
        words += ("--insecure",) if connection.insecure else ()
        if connection.root_certificates is not None:
            words += ("--root-certificates", str(connection.root_certificates))
        if (key := self.keys / f"{name}.key").is_file():
            words += ("--auth-supernode-private-key", str(key))
        words += ("--node-config", f'client-id="{says or name}" store="{self.store(name)}" {config}')
        if resident:
            return self.start(f"node-{name}", [*CLI, "node", *words])
        supernode = flower_command("flower-supernode", self.env)
        return self.start(f"node-{name}", [supernode, "--port", str(free_port()), *words])

    def store(self, name: str) -> Path:
        """The root of a node's store."""
        return self.private / "stores" / name

    @property
    def words(self) -> list[str]:
        """Overrides that a run on this federation is submitted with. All nodes are of this machine, so who is
        not there yet is still starting."""
        connection = self.connection
        words = ["federation=deployment", f"federation.superlink={connection.address}"]
        words.append(f"federation.wait_seconds={STARTING_SECONDS}")
        words.append(f"federation.insecure={str(connection.insecure).lower()}")
        if connection.root_certificates is not None:
            words.append(f"federation.root_certificates={connection.root_certificates}")
            words.append(f"federation.registry={self.keys / REGISTRY}")
        return words

    def submit(self, *words: str, folder: Path | None = None) -> subprocess.Popen[bytes]:
        """Start ``fedsa-lora`` with these words, in a folder that may have configs of the user's own."""
        return self.start("submit", [*CLI, *words], folder)

    def start(self, name: str, command: Sequence[str], folder: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a process of the federation; what it prints is added to ``logs/NAME.log``."""
        with (self.logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env=self.env,
                cwd=folder or self.private,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a process of the federation, and all that it started, as a power cut would."""
        for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        process.wait()

    def close(self) -> None:
        """End every process. Harmless when called again."""
        end_run(self._token, self.private)
        self._guard.communicate()
