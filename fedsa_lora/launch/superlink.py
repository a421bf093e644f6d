"""A SuperLink of our own: its port, environment and private folder, and the end of all that it started."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import psutil

from fedsa_lora.errors import RunError
from fedsa_lora.files import writing
from fedsa_lora.launch.connection import Connection
from fedsa_lora.launch.flower_log import tail

log = logging.getLogger("flwr")
TOKEN_VARIABLE = "FEDSA_LORA_RUN_TOKEN"

SLOW_SECONDS = 30.0  # after which, and every so often, the screen says what is waited for
GRACE_SECONDS = 10.0  # for processes that are to end: those that do sooner are not waited for
PORT_ATTEMPTS = 3
# Ray's sockets add 68 characters to its folder; an AF_UNIX address holds 103 on macOS, 107 on Linux.
LONGEST_TEMP_DIR = 20

DEFAULTS = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray then takes loopback for the address of this machine, and all that it starts listens there alone: it
    # runs what whoever reaches it asks for. (The name is of a switch that is off on macOS and Windows.)
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Otherwise Flower installs the app's dependencies, torch among them, anew for each run.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
}
# RAY_ADDRESS would join another Ray; FLWR_DATABASE another SuperLink's runs.
NOT_INHERITED = ("RAY_ADDRESS", "FLWR_DATABASE")


class Patience:
    """Waits without a limit for something that lives, however slow its machine is: the screen says what for.

    `seconds` since it began, or was last reset.
    """

    def __init__(self, awaited: str) -> None:
        self.awaited = awaited
        self.reset()

    def reset(self) -> None:
        """Begin the wait anew, as what was waited for came."""
        self._began = time.monotonic()
        self._told = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def note(self) -> None:
        """Still waiting: log that, every SLOW_SECONDS."""
        if self.seconds >= (self._told + 1) * SLOW_SECONDS:
            self._told += 1
            log.warning("waiting for %s, for %.0f s now", self.awaited, self.seconds)


class SuperLink:
    """A simulation SuperLink on a free loopback port, that shares nothing with any other on this machine.

    `log` receives what it prints. `extra_env` wins over `DEFAULTS`, which win over the caller's environment.
    After `start`: `port`, `env` (for every process of the run), and `private`, the folder in which they run
    and which `close` removes.
    """

    def __init__(self, log: Path, extra_env: Mapping[str, str]) -> None:
        self.log = log
        self.token = uuid.uuid4().hex
        self.port = 0
        self.env: dict[str, str] = {}
        self.private: Path | None = None
        self._extra_env = dict(extra_env)
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> Path:
        """Return the private folder once the SuperLink listens; RunError with its last words if it fails."""
        with writing(self.log):
            self.log.parent.mkdir(parents=True, exist_ok=True)
        self.private = _short_temp_dir()
        self.env = self._environment(self.private)
        self._guard = start_guard(self.token, self.private)
        for _ in range(PORT_ATTEMPTS):  # another process may take the free port before the SuperLink does
            self.port = free_port()
            begin = self.log.stat().st_size if self.log.exists() else 0
            process = self._process = self._spawn(self.private)
            if listens(process, self.port):
                return self.private
            output = tail(self.log, begin)
            if "address already in use" not in output:
                break
        lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
        raise RunError(f"the SuperLink did not start: {lines[-1]}; see {self.log}")

    @property
    def connection(self) -> Connection:
        """Return how to reach it, once it is started."""
        return Connection(f"127.0.0.1:{self.port}", insecure=True)

    def exit_code(self) -> int | None:
        """Return None while the SuperLink lives."""
        return None if self._process is None else self._process.poll()

    def command(self, name: str) -> str:
        """Return the path of one of Flower's commands; RunError when it is not installed."""
        return flower_command(name, self.env)

    def processes(self) -> list[psutil.Process]:
        """List the live processes of the run, the SuperLink's own included."""
        return [] if self.private is None else _processes(self.token, self.private)

    def close(self) -> None:
        """End every process of the run and remove the private folder. Harmless when called again."""
        if self.private is None:
            return
        end_run(self.token, self.private)
        if self._process is not None:
            self._process.wait()
        if self._guard is not None:
            self._guard.communicate()

    def _environment(self, private: Path) -> dict[str, str]:
        own = {
            TOKEN_VARIABLE: self.token,
            "FLWR_HOME": str(private / "flwr"),
            "RAY_TMPDIR": str(private),
        }
        return flower_environment() | self._extra_env | own

    def _spawn(self, private: Path) -> subprocess.Popen[bytes]:
        command = [self.command("flower-superlink"), "--insecure", "--simulation"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        with writing(self.log), self.log.open("ab") as output:
            return subprocess.Popen(
                command,
                env=self.env,
                # Not the app's folder: Ray's workers would import from there instead of the submitted bundle.
                cwd=private,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is for us alone, to clean up in order
            )


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until this process, not a stranger, listens to the port; False if it ends before it does."""
    patience = Patience("the SuperLink to listen")
    while process.poll() is None:
        try:
            sockets = psutil.Process(process.pid).net_connections("tcp")
        except psutil.Error:
            sockets = []
        if any(s.status == psutil.CONN_LISTEN and s.laddr.port == port for s in sockets):
            return True
        patience.note()
        time.sleep(0.05)
    return False


def flower_environment() -> dict[str, str]:
    """This process's environment, as Flower's commands need it."""
    env = {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}
    env.setdefault("OMP_NUM_THREADS", "1")
    # Flower finds its own helpers on PATH, where a virtual environment that is not active is not.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    return env | DEFAULTS


def flower_command(name: str, env: Mapping[str, str]) -> str:
    """The path of one of Flower's commands. Raises RunError when it is not installed."""
    found = shutil.which(name, path=env["PATH"])
    if found is None:
        raise RunError(f"`{name}` is not next to {sys.executable}: install `flwr[simulation]` there")
    return found


def _processes(token: str, private: Path) -> list[psutil.Process]:
    """List the live processes of a run.

    Daemons leave the process group and outlive their parents, and Ray's workers overwrite their environment
    when they change their title: so by token, by working folder, and by descent from either.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            marked = process.environ().get(TOKEN_VARIABLE) == token
            if marked or Path(process.cwd()).is_relative_to(private):
                found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
        except psutil.Error:  # it ended meanwhile, or is another user's
            continue
    return list(found.values())


def end_run(token: str, private: Path) -> None:
    """Send SIGTERM once, and after a grace SIGKILL, until no process of the run lives; remove its folder."""
    started = time.monotonic()
    asked: set[psutil.Process] = set()
    while alive := _processes(token, private):
        patient = time.monotonic() - started < GRACE_SECONDS
        for process in alive:
            if patient and process in asked:
                continue
            try:
                process.send_signal(signal.SIGTERM if patient else signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        asked.update(alive)
        psutil.wait_procs(alive, timeout=0.2)
    shutil.rmtree(private, ignore_errors=True)


def start_guard(token: str, private: Path) -> subprocess.Popen[bytes]:
    """Start a process that ends the run when this one vanishes without doing so (SIGKILL, out of memory).

    It waits for the end of its input, which comes with our death at the latest. Flower's own processes and
    Ray outlive a SuperLink that is gone.
    """
    return subprocess.Popen(
        [sys.executable, "-m", __name__, token, str(private)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        cwd="/",
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def _short_temp_dir() -> Path:
    parent = tempfile.gettempdir()
    if len(parent) > LONGEST_TEMP_DIR and os.access("/tmp", os.W_OK):
        parent = "/tmp"
    with writing(Path(parent)):
        return Path(tempfile.mkdtemp(prefix="fsl-", dir=parent)).resolve()


def free_port() -> int:
    """A port of loopback that nobody listens to at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end_run(sys.argv[1], Path(sys.argv[2]))
