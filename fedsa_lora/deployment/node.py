"""``fedsa-lora node``: a SuperNode, and beside it the process in which its client's model stays resident."""

from __future__ import annotations

import argparse
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Self

from click import ClickException
from flwr.common.config import parse_config_args
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from httpx import HTTPError

from fedsa_lora.deployment.node_config import Node
from fedsa_lora.errors import ConfigError
from fedsa_lora.launch.superlink import flower_environment, free_port

OURS = ("--isolation", "--host", "--port")
POLL_SECONDS = 0.1  # between looks for tasks, where the SuperNode does not report that a message has come
MOST_AT_ONCE = 4096  # of its reports
GRACE_SECONDS = 10.0
_PAIR = re.compile(r"""\S+?=('[^']*'|"[^"]*"|\S+)""")  # as Flower finds them: it passes over what is between


def run_node(arguments: Sequence[str]) -> int:
    """Run a SuperNode with these arguments of ``flower-supernode`` until it ends; returns its exit code.

    Raises ConfigError, before anything starts, for a node config that cannot be used.
    """
    if given := [word for word in arguments if word.split("=")[0] in OURS]:
        raise ConfigError(f"{', '.join(given)}: set by `fedsa-lora node` itself; leave it out")
    Node.deployed(_node_config(arguments))
    signal.signal(signal.SIGTERM, _exit_on_signal)
    with tempfile.TemporaryDirectory(prefix="fedsa-node-") as home:
        env = flower_environment()
        env.setdefault("FLWR_HOME", home)  # where the apps of runs are unpacked
        address = f"127.0.0.1:{free_port()}"
        supernode, arrivals = _start_supernode(arguments, address, env)
        try:
            with Tasks(address, env) as tasks:
                due = False
                while (code := supernode.poll()) is None:
                    due = arrivals.within(POLL_SECONDS) or due
                    if due:
                        due = not tasks.hand_out()
            return code
        finally:
            _end(supernode)
            arrivals.close()


def _start_supernode(
    arguments: Sequence[str], address: str, env: dict[str, str]
) -> tuple[subprocess.Popen[bytes], Arrivals]:
    """The process, whose Runtime API is at ``address``, and its reports."""
    host, port = address.split(":")
    reads, writes = os.pipe()
    command = [*_python_script("supernode.py"), str(writes), *arguments]
    command += ["--isolation", "process", "--host", host, "--port", port]
    supernode = subprocess.Popen(command, env=env, pass_fds=[writes])
    os.close(writes)
    return supernode, Arrivals(reads)


class Arrivals:
    """Reports of a SuperNode that all of a message has arrived, through a pipe. Flower makes its task before
    that, and a process that takes it too early waits for a second."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._reports = descriptor, True

    def within(self, seconds: float) -> bool:
        """Wait so long at the most. True where a message has come; or may have, as nothing reports it."""
        if not self._reports:
            time.sleep(seconds)
        elif select.select([self._descriptor], [], [], seconds)[0]:
            self._reports = bool(os.read(self._descriptor, MOST_AT_ONCE))
        else:
            return False
        return True

    def close(self) -> None:
        os.close(self._descriptor)


class Tasks:
    """Takes the tasks of a SuperNode and hands them to a process of their app; a new one for a new app, and
    where the old one died."""

    def __init__(self, address: str, env: dict[str, str]) -> None:
        self.address, self.env = address, env
        self._client = RuntimeHttpClient.from_server_address(
            address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor("SuperExec")],
        )
        self._worker: subprocess.Popen[str] | None = None
        self._app = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._end_worker()
        self._client.close()

    def hand_out(self) -> bool:
        """Take a task; False where there is none, as while the SuperNode is starting."""
        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except HTTPError:
            return False
        if not answer.token:
            return False
        worker = self._worker
        if worker is None or worker.poll() is not None or self._app != answer.task.fab_hash:
            self._end_worker()
            worker = self._worker = self._start()
            self._app = answer.task.fab_hash
        assert worker.stdin is not None
        try:
            print(answer.token, file=worker.stdin, flush=True)
        except BrokenPipeError:  # it died just now: the SuperNode reports the task as crashed
            self._end_worker()
        return True

    def _start(self) -> subprocess.Popen[str]:
        command = [*_python_script("resident.py"), self.address]
        return subprocess.Popen(command, env=self.env, stdin=subprocess.PIPE, text=True)

    def _end_worker(self) -> None:
        if self._worker is not None:
            assert self._worker.stdin is not None
            self._worker.stdin.close()
            _end(self._worker)
        self._worker = None


def _python_script(name: str) -> list[str]:
    """The command for a script beside this file. -P: its folder must not be a place to import from."""
    return [sys.executable, "-P", str(Path(__file__).with_name(name))]


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make it after a grace."""
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _node_config(arguments: Sequence[str]) -> dict[str, object]:
    """Reads ``--node-config``. Raises ConfigError when it is missing or has no values."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--node-config")
    text = parser.parse_known_args(arguments)[0].node_config
    if text is None:
        raise ConfigError('no --node-config: expected --node-config \'client-id="NAME" store="FOLDER"\'')
    expected = f"--node-config {text!r}: expected key=value pairs, texts in double quotes"
    try:
        config = parse_config_args([text])
    except (ClickException, OSError, ValueError) as error:
        raise ConfigError(f"{expected}; {error}") from error
    left = "" if text.endswith(".toml") else _PAIR.sub("", text).strip(" ,")
    if left or not config:
        raise ConfigError(f"{expected}{f', and nothing else: {left}' if left else ''}")
    return dict(config)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
