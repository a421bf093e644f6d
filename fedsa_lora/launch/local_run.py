"""A simulation on the cores of this machine, without Flower's simulation runtime: one process plays the
ServerApp, and one for each core serves clients."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext
from pathlib import Path
from typing import Self

from flwr.app import UserConfig
from flwr.supercore.logger import console_handler
from threadpoolctl import threadpool_limits

from fedsa_lora.client_app import make_resident
from fedsa_lora.config.compose import handed, to_yaml
from fedsa_lora.decision import COHORT, decided
from fedsa_lora.errors import FedSAError
from fedsa_lora.files import writing
from fedsa_lora.launch.flower_run import POLL_SECONDS, Outcome
from fedsa_lora.launch.size import Processes
from fedsa_lora.launch.superlink import GRACE_SECONDS
from fedsa_lora.launch.workers import WorkerGrid, context
from fedsa_lora.runs.inprocess import play, together
from fedsa_lora.settings import RunConfig
from fedsa_lora.simulation import SIMULATION
from fedsa_lora.stopping import TERMINATED, end_with_parent, exit_on_signal, undisturbed


class LocalRun:
    """One simulation with all its processes, from ``__enter__`` to ``__exit__``.

    ``overrides`` is what the apps are handed beside the resolved config. What they print is added to ``log``.
    Our process is to have no thread yet, as the others are forked from it.
    """

    def __init__(self, config: RunConfig, overrides: str, place: Processes, log: Path) -> None:
        self.config, self.place, self.log = config, place, log
        self.run_config: UserConfig = {"overrides": overrides, "composed": to_yaml(config)}
        self._log_begin = log.stat().st_size if log.exists() else 0
        self._reason = ""

    def __enter__(self) -> Self:
        with writing(self.log):
            self.log.touch()
        start = context(self.config.machine.threads)
        self._told, theirs = start.Pipe(duplex=False)
        arguments = (self.place, self.run_config, self.log, theirs)
        self._process = start.Process(target=_play, args=arguments)
        try:
            self._process.start()
            theirs.close()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the run."""
        if self._process.pid is None:  # it was not started
            return
        with undisturbed():
            if self._process.is_alive():
                self._process.terminate()
                self._process.join(GRACE_SECONDS)
            with suppress(ProcessLookupError):  # they end by themselves, only later
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.join()

    def follow(self, poll: Callable[[], None]) -> Outcome:
        """Wait for the end, calling ``poll`` about four times a second."""
        while self._process.is_alive():
            poll()
            self._hear()
            self._process.join(POLL_SECONDS)
        self._hear()
        code = self._process.exitcode or 0
        if code == 0:
            return Outcome("completed", "", self._log_begin)
        if code == TERMINATED:
            return Outcome("stopped", "", self._log_begin)
        if code < 0:
            self._reason = f"the process of the server was killed by signal {-code}, perhaps out of memory"
        reason = self._reason or f"the process of the server ended with exit code {code}; see {self.log}"
        return Outcome("failed", reason, self._log_begin)

    def _hear(self) -> None:
        """Take in the reason of a failure, which the process may wait to be rid of."""
        with suppress(EOFError):
            if self._told.poll():
                self._reason = str(self._told.recv())


def _play(place: Processes, run_config: UserConfig, log: Path, told: Connection) -> None:
    """Play a federation in a separate process, and report why it could not be done."""
    os.setsid()  # a Ctrl-C in the terminal is for the command alone, to clean up in order
    signal.signal(signal.SIGTERM, exit_on_signal)
    end_with_parent()
    _print_to(log)
    os.environ |= {SIMULATION: "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        _play_on_workers(place, run_config)
    except Exception as error:
        told.send(f"{type(error).__name__}: {error}")
        traceback.print_exc()
        sys.exit(1)


def _play_on_workers(place: Processes, run_config: UserConfig) -> None:
    handed.cache_clear()  # the data may be others than those of a run before
    config = handed(str(run_config["composed"]))
    threads = config.machine.threads
    threadpool_limits(threads)  # of BLAS: bits depend on the order of sums
    decided(config.run_dir, COHORT, lambda: str(place.cohort))
    if isinstance(context(threads), ForkContext):
        with suppress(FedSAError):  # which each client then answers
            make_resident(run_config)
    with WorkerGrid(place.workers, threads, place.nodes, run_config, together(config)) as grid:
        play(config, grid, run_config)


def _print_to(log: Path) -> None:
    """Have what this process and its children print end in a file, and Flower's log as Flower shows it."""
    file = log.open("a", buffering=1, encoding="utf-8", errors="replace")
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    console_handler.setStream(file)
    console_handler.colored = False
    logging.getLogger("flwr").setLevel(logging.INFO)
