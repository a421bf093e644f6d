"""Start the real `flwr run`, follow it, report how it ended, leave nothing behind.

A simulation has its own SuperLink, Flower home and Ray session, so runs side by side do not meet. A deployed
run is submitted to a SuperLink that runs already; that one and its nodes stay.
"""

import json
import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from flwr.proto.control_pb2 import ListRunsRequest, StopRunRequest, StreamLogsRequest
from flwr.supercore.control import ControlHttpClient
from httpx import HTTPError

from fedsa_lora.errors import RunError
from fedsa_lora.files import writing
from fedsa_lora.launch.connection import Connection, toml_string
from fedsa_lora.launch.deployed import RunningSuperLink
from fedsa_lora.launch.flower_log import ANSI, failure_reason, tail
from fedsa_lora.launch.size import Simulation
from fedsa_lora.launch.superlink import Patience, SuperLink
from fedsa_lora.stopping import exit_on_signal

SILENCE_SECONDS = 900.0  # of a SuperLink on another machine, which may be restarted; ours is seen to live
POLL_SECONDS = 0.25
STATUS_SECONDS = 5.0
LOG_END_SECONDS = 120.0  # after the end of a run: it comes by itself, later where the machine is slow


End = Literal["completed", "failed", "stopped"]
ENDS: dict[str, End] = {"completed": "completed", "failed": "failed", "stopped": "stopped"}  # Flower's words
logger = logging.getLogger("flwr")


@dataclass(frozen=True)
class Outcome:
    """End of a run, with the reason when it did not complete.

    "completed" is Flower's word, which it also says of a ServerApp that called `sys.exit` and of rounds in
    which every client failed: look at what the ServerApp wrote as well; its log is what came after byte
    `log_begin` of the log file.
    """

    state: End
    details: str
    log_begin: int = 0


class FlowerRun:
    """One `flwr run` with everything it needs, from `__enter__` to `__exit__`.

    `place` is a simulation to start, or how to reach a SuperLink that runs. `overrides` reaches the app
    unchanged, as `run_config["overrides"]`, and so does `composed`, where it is not empty. The apps of a
    simulation run in a private folder that is removed at the end, so paths in it must be absolute. What they
    print (of deployed apps the ServerApp), tracebacks included, is added to `work_dir/flower.log`; what our
    own SuperLink prints, to `work_dir/superlink.log`. `env` is added to the environment of a simulation. In
    the main thread, SIGTERM and SIGHUP raise SystemExit(128 + signal) while the run is open, so that they too
    end in `__exit__`.

    Raises RunError when the SuperLink does not start or answer, or `flwr run` rejects the app.
    """

    def __init__(
        self,
        app_dir: Path,
        overrides: str,
        place: Simulation | Connection,
        work_dir: Path,
        env: Mapping[str, str] | None = None,
        composed: str = "",
    ) -> None:
        self.app_dir = app_dir.resolve()
        self.run_config = {"overrides": overrides} | ({"composed": composed} if composed else {})
        self.place = place
        self.log = work_dir.resolve() / "flower.log"
        self.superlink: SuperLink | RunningSuperLink
        if isinstance(place, Simulation):
            self.superlink = SuperLink(work_dir.resolve() / "superlink.log", env or {})
        else:
            self.superlink = RunningSuperLink(place, self.log)
        self.run_id = 0
        self._ended = False
        self._log_begin = self.log.stat().st_size if self.log.exists() else 0
        self._client: ControlHttpClient | None = None
        self._log_copy: threading.Thread | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._catch_signals()
        try:
            private = self.superlink.start()
            self.run_id = self._submit(private)
            self._client = self.superlink.connection.client()
            self._log_copy = threading.Thread(target=self._copy_log, args=(self._client,), daemon=True)
            self._log_copy.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def status(self) -> tuple[str, str]:
        """Return Flower's (state, details): pending, starting, running, completed, failed or stopped.

        Raises RunError when the SuperLink does not answer.
        """
        if self._client is None:
            raise RunError("this run is not open: ask for its status inside `with FlowerRun(...) as run:`")
        try:
            # What `flwr ls` asks, in 4 ms instead of the second of CPU that the command costs.
            run = self._client.ListRuns(ListRunsRequest(run_id=self.run_id)).run_dict[self.run_id]
        except HTTPError as error:
            raise RunError(f"the SuperLink does not answer: {error}; see {self.superlink.log}") from error
        return run.status.sub_status or run.status.status, run.status.details

    def follow(self, poll: Callable[[], None] = lambda: None, timeout: float | None = None) -> Outcome:
        """Wait for the end, calling `poll` about four times a second.

        After `timeout` seconds the outcome is "stopped"; leaving the `with` block then ends the run.
        """
        started = time.monotonic()
        asked, silence = 0.0, Patience("the SuperLink to answer")
        while True:
            poll()
            if (code := self.superlink.exit_code()) is not None:
                reason = f"the SuperLink ended with exit code {code} before the run did"
                return Outcome("failed", f"{reason}; see {self.superlink.log}")
            now = time.monotonic()
            if timeout is not None and now - started > timeout:
                return Outcome("stopped", f"not finished within {timeout:g} s")
            if now - asked > STATUS_SECONDS or self._log_ended():
                asked = now
                try:
                    if outcome := self._outcome(*self.status()):
                        return outcome
                    silence.reset()
                except RunError as error:
                    silence.note()
                    if isinstance(self.place, Connection) and silence.seconds > SILENCE_SECONDS:
                        return Outcome("failed", f"{error}; the run may continue there")
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End every process of a simulation, or the deployed run. Harmless when called again."""
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)
        if isinstance(self.superlink, RunningSuperLink):
            self._stop()
        self.superlink.close()
        if self._log_copy is not None:
            self._log_copy.join(STATUS_SECONDS)  # what it copied from was ended
        if self._client is not None:
            self._client.close()
            self._client = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _submit(self, private: Path) -> int:
        """Submit the app with `flwr run` and return Flower's run id."""
        # On the command line Flower cuts a value at its first quote; a file keeps it whole.
        run_config = private / "run-config.toml"
        with writing(private):
            (private / "flwr").mkdir(exist_ok=True)
            (private / "flwr" / "config.toml").write_text(self.superlink.connection.toml("ours"))
            lines = [f"{key} = {toml_string(text)}\n" for key, text in self.run_config.items()]
            run_config.write_text("".join(lines), encoding="utf-8")
        command = [self.superlink.command("flwr"), "run", str(self.app_dir), "ours", "--format", "json"]
        command += ["--run-config", str(run_config)]
        if isinstance(self.place, Simulation):
            command += ["--federation-config", self.place.federation_config()]
        said, complaint = self._answer(command, private)
        found = _json_object(said)
        if not found.get("success"):
            reason = str(found.get("error-message") or complaint or said).strip()
            raise RunError(f"`flwr run` rejected the app in {self.app_dir}: {reason}")
        return int(found["run-id"])

    def _answer(self, command: list[str], private: Path) -> tuple[str, str]:
        """Returns what a command prints to its output and its errors. It is waited for as long as it lives
        and our own SuperLink does; RunError when that ends first."""
        patience = Patience("`flwr run` to submit the app")
        with subprocess.Popen(
            command, env=self.superlink.env, cwd=private, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                while True:
                    try:
                        return process.communicate(timeout=POLL_SECONDS)
                    except subprocess.TimeoutExpired:
                        patience.note()
                    if (code := self.superlink.exit_code()) is not None:
                        raise RunError(
                            f"the SuperLink ended with exit code {code} before the app was submitted; see "
                            f"{self.superlink.log}"
                        )
            except BaseException:
                process.kill()
                raise

    def _stop(self) -> None:
        """Stop a run that was submitted and has not ended; the SuperLink and its nodes continue."""
        if self._client is not None and not self._ended:
            with suppress(HTTPError):  # it does not answer, or the run ended meanwhile
                self._client.StopRun(StopRunRequest(run_id=self.run_id))

    def _copy_log(self, client: ControlHttpClient) -> None:
        """Write what the apps print to `self.log` until the run ends: it is not in the SuperLink's output. A
        log that cannot be written is no reason to end a run, and is reported once."""
        parts = _log_parts(client, self.run_id)
        try:
            with self.log.open("ab", buffering=0) as log:
                for text in parts:
                    log.write(text.encode(errors="replace"))
        except OSError as error:
            logger.warning("%s cannot be written: %s; the run continues", self.log, error.strerror)
            for _ in parts:  # the end of what is printed is the end of the run
                pass

    def _log_ended(self) -> bool:
        return self._log_copy is None or not self._log_copy.is_alive()

    def _outcome(self, said: str, details: str) -> Outcome | None:
        state = ENDS.get(said)
        if state is None:
            return None
        self._ended = True
        if self._log_copy is not None:
            self._log_copy.join(LOG_END_SECONDS)
        if state == "failed":
            details = failure_reason(tail(self.log, self._log_begin), details)
        return Outcome(state, details, self._log_begin)

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if handler in (signal.SIG_IGN, None):  # nohup, or not Python's to give back
                continue
            self._handlers[number] = handler
            if number != signal.SIGINT:  # which raises KeyboardInterrupt already
                signal.signal(number, exit_on_signal)


def _log_parts(client: ControlHttpClient, run_id: int) -> Iterator[str]:
    """Yields what the apps of a run print, without colours, until the run ends or the SuperLink does."""
    try:
        for part in client.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=0.0)):
            yield ANSI.sub("", part.log_output)
    except (HTTPError, ValueError) as error:  # ValueError: cut in the middle of a message
        yield f"\nend of the log: {error}\n"


def _json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a command's output, around which it may print lines; empty without one."""
    try:
        return dict(json.loads(text[text.index("{") : text.rindex("}") + 1]))
    except ValueError:
        return {}
