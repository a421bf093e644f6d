"""The run directory: what a run writes, while it runs and at its end."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedsa_lora.config.compose import to_yaml
from fedsa_lora.errors import FedSAError, RunError
from fedsa_lora.exchange.arrays import Layout, Vector
from fedsa_lora.files import Held, append, sync, write_atomically, writing
from fedsa_lora.report.wording import shown
from fedsa_lora.runs.changed_data import DATA, check_data, check_measure
from fedsa_lora.runs.checkpoints import Checkpoints
from fedsa_lora.runs.environment import environment
from fedsa_lora.runs.interrupted import alone, gone, now, stopped_after, write_status
from fedsa_lora.runs.metrics import CLIENTS, FINISHING, ROUNDS, RunMetrics
from fedsa_lora.runs.place import make, refuse_used
from fedsa_lora.runs.reading import AFTERWARDS, PARTITION, REPORT, Row, holds_run, read_json, read_jsonl
from fedsa_lora.runs.spreadsheet import as_csv
from fedsa_lora.settings import RunConfig
from fedsa_lora.stopping import by_signal
from fedsa_lora.store import ClientState
from fedsa_lora.tasks.fingerprint import fingerprint_of
from fedsa_lora.tasks.task import FederationData
from fedsa_lora.telemetry.journal import record, record_error

log = logging.getLogger("flwr")


class RunDirectory:
    """Receives the rows of a run (it is the strategy's Recorder) and says how the run ended.

    Rows are appended and flushed one by one, so that a killed run keeps what it measured; every
    other file is replaced whole. Whoever creates or resumes it has it alone until ``close``; what it writes
    until then goes into the very directory that it began in, or raises RunError where that was deleted, moved
    or replaced. "completed" is written last of all, when every other file is there.
    """

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, config
        self.resumed: ClientState | None = None  # the checkpoint that the run resumes from
        self.metrics = RunMetrics(path, config.federation.rounds, config.task.measures[0])
        self.run = ""  # what the clients' stores know this run by; kept when it is resumed
        self.resumptions = 0
        self._started = now()
        self._checkpoints = Checkpoints(path, config)
        self._lock = ExitStack()
        self._held: Held | None = None  # the directory that is locked

    @classmethod
    def create(cls, config: RunConfig, command: str) -> RunDirectory:
        """A new run directory; ``command`` is what a reader types to run it again.

        Raises RunError when the directory already holds a run, or another process is at one in it, and
        DataError where nobody could be measured.
        """
        path = config.run_dir
        refuse_used(path)
        federation = config.task.describe()
        federation.check_measurable(config.evaluation.part)
        directory = cls(path, config)
        make(path)
        directory._open()
        try:
            directory._write("config.yaml", to_yaml(config))
            run = secrets.token_hex(8)
            directory._write_json("environment.json", environment() | {"command": command, "run": run})
            directory.run = run  # from now on the directory is known by it
            directory._write_status("running")
            directory._write_data(federation)
        except BaseException as error:
            directory._broken(error)
            directory.close()
            raise
        return directory

    @classmethod
    def announce(cls, config: RunConfig) -> None:
        """Say in ``status.json`` that a run is being started, so that it has an end if it never begins."""
        directory = cls(config.run_dir, config)
        make(directory.path)
        directory._write_status("starting")

    @classmethod
    def resume(cls, config: RunConfig, command: str) -> RunDirectory:
        """The directory of an interrupted run, as it was after its last whole round: rows of a later
        one are dropped. A checkpoint that cannot be read is logged, and the round before it is taken.
        ``command`` replaces that of before: it has what the resumption changed. Where every round is whole
        and the run is only to be finished, that is no resumption to remember.

        Raises RunError when there is no round to resume from, another process is at it, or the task has
        another primary measure than before, and DataError when the data changed and the config does not allow
        it; the directory is then as it was.
        """
        directory = cls(config.run_dir, config)
        directory._open()
        try:
            remark = check_data(directory.path, config, config.run.allow_changed_data)
            check_measure(directory.path, config)
            rounds = directory._whole_rounds()
        except BaseException:
            directory.close()
            raise
        try:
            directory._go_back(rounds, command, remark)
        except BaseException as error:
            directory._broken(error)
            directory.close()
            raise
        return directory

    def _whole_rounds(self) -> list[Row]:
        """The rows up to the last whole round, of which ``resumed`` is then the checkpoint."""
        path = self.path / ROUNDS
        rounds = read_jsonl(path) if path.exists() else []
        self.resumed = self._checkpoints.last_sound({row["round"] for row in rounds})
        if not self.done:
            raise RunError(f"{self.path} has no complete round with a valid checkpoint: run it again")
        if self.done >= self.config.federation.rounds:
            self._started = read_json(self.path / "status.json", ["started"])["started"]
        return [row for row in rounds if row["round"] <= self.done]

    def _go_back(self, rounds: list[Row], command: str, remark: str) -> None:
        """Leave in the directory what it held after its last whole round. The first write takes back that the
        run is completed, where it was: wherever this is interrupted, the run can be resumed."""
        clients = [row for row in read_jsonl(self.path / CLIENTS) if row["round"] <= self.done]
        known = read_json(self.path / "environment.json")
        self._write_status("running")
        (self.path / REPORT).unlink(missing_ok=True)  # it shows how the run ended before
        for name, rows in ((ROUNDS, rounds), (CLIENTS, clients)):
            self._write(name, "".join(json.dumps(row) + "\n" for row in rows))
        for row in rounds:
            self.metrics.add(row)
        self.run = known.get("run", "")
        breaks = known.get("resumed", [])
        if self.done < self.config.federation.rounds:
            breaks = [*breaks, {"after_round": self.done, "time": self._started}]
            for name in AFTERWARDS:  # of a model that is trained on
                (self.path / name).unlink(missing_ok=True)
        if remark:
            log.warning("%s", remark)
            self._write_data(self.config.task.describe(), f"resumed after round {self.done}: {remark}")
        self.resumptions = len(breaks)
        told = {"command": command} | ({"resumed": breaks} if breaks else {})
        self._write_json("environment.json", known | environment() | told)
        self._write("config.yaml", to_yaml(self.config))

    def _write_data(self, federation: FederationData, *notes: str) -> None:
        """Writes the clients' numbers of examples, and of which rows they were made. ``notes`` are added to
        those that the user is to see."""
        told = replace(federation, notes=(*federation.notes, *notes))
        measures = [asdict(measure) for measure in self.config.task.measures]
        self._write_json(PARTITION, asdict(told) | {"measures": measures})
        fingerprint = None if self.config.federation.own else fingerprint_of(self.config.task)
        if fingerprint is not None:
            self._write_json(DATA, asdict(fingerprint))

    def _open(self) -> None:
        """Take the directory for this process alone, and know it again."""
        self._lock.enter_context(alone(self.path))
        self._held = self._lock.enter_context(closing(Held(self.path)))

    def close(self) -> None:
        """Let another process resume the run."""
        self._lock.close()
        self._held = None

    def check(self) -> None:
        """Raise RunError where the directory is not the one that the run began in: what would be written
        would be half a run, or go into another one."""
        if self._held is None:
            return
        if not self._held.in_place() or (self.run and not holds_run(self.path, self.run)):
            raise RunError(gone(self.path))

    @property
    def done(self) -> int:
        """Rounds that are not made again."""
        return 0 if self.resumed is None else self.resumed.round

    def client(self, row: dict[str, Any]) -> None:
        self._append(CLIENTS, row)
        known: Row = {name: row.get(name) for name in ("client", "round", "phase", "seconds")}
        record("answer", bytes=row.get("bytes_up"), **known)

    def round(self, row: dict[str, Any]) -> None:
        self._append(ROUNDS, row)
        self.metrics.add(row)
        self.metrics.publish("running")
        sent = (row.get("bytes_up") or 0) + (row.get("bytes_down") or 0)
        primary = self.metrics.primary
        told = f"{row.get('fit_clients')} clients, {primary.words} {shown(row.get(primary.name), primary)}"
        record("round", told, round=row.get("round"), seconds=row.get("seconds"), bytes=sent)

    def checkpoint(
        self, round_: int, layout: Layout, common: Vector, memory: dict[str, NDArray[Any]]
    ) -> None:
        """Keep what the server knows at the end of a round."""
        self.check()
        self._checkpoints.save(round_, layout.unpack(common), memory)

    def last_checkpoint(self) -> ClientState:
        """The newest checkpoint. Raises RunError when there is none."""
        return self._checkpoints.last()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Records what happens inside in ``status.json``, the log and the metrics. What ends the run is
        raised again, and not replaced by an error of recording it."""
        record("started", f"after round {self.done}")
        self.metrics.publish("running")
        try:
            yield
            self._complete()
        except BaseException as error:
            self._broken(error)
            raise
        record("completed")

    def finishing(self) -> None:
        """Say that every round is whole and the results are being written."""
        self._write_status("running", phase=FINISHING)

    def _complete(self) -> None:
        """The very last write of a run: who reads "completed" finds everything."""
        self.check()
        self.metrics.publish("completed")
        self._write_status("completed")

    def _broken(self, error: BaseException) -> None:
        state, reason = "failed", f"{type(error).__name__}: {error}"
        try:
            if by_signal(error):
                state, reason = "stopped", stopped_after(self.path)
            self._write_status(state, reason)
            self.metrics.publish(state)
        except FedSAError as fault:
            log.error("the state of the run (%s) cannot be recorded: %s", state, fault)
        if state == "stopped":
            record("stopped", reason, logging.WARNING)
        else:
            record_error("failed", reason)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """``summary.json``, and the JSON lines once more as CSV; those are synced, which each row was not."""
        self._write_json("summary.json", summary)
        for name in ("rounds", "clients"):
            rows = self.path / f"{name}.jsonl"
            with writing(rows):
                sync(rows)
            lines = rows.read_text(encoding="utf-8").splitlines()
            self._write(f"{name}.csv", as_csv([json.loads(line) for line in lines]))

    def _status(self, state: str, reason: str | None = None) -> dict[str, Any]:
        ended = None if state in ("starting", "running") else now()
        what = {"title": self.config.title, "rounds": self.config.federation.rounds}
        return {"state": state, "reason": reason, "started": self._started, "ended": ended, **what}

    def _write_status(self, state: str, reason: str | None = None, **more: str) -> None:
        self.check()
        write_status(self.path, self._status(state, reason) | more)

    def _append(self, name: str, row: dict[str, Any]) -> None:
        self.check()
        append(self.path / name, json.dumps(row) + "\n")

    def _write(self, name: str, text: str) -> None:
        self.check()
        write_atomically(self.path / name, text.encode())

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        self._write(name, json.dumps(content, indent=1) + "\n")
