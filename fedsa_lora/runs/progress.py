"""State of a run, read from its directory while it is being written."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

from fedsa_lora.config.changes import changes_of
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.runs.metrics import CLIENTS, ROUNDS, RunMetrics
from fedsa_lora.runs.outcomes import failures
from fedsa_lora.runs.reading import Growing, Row, primary_in, read_json
from fedsa_lora.telemetry.journal import SERVER_LOG

QUIET_SECONDS = 120.0  # and five of its usual rounds: after that it is said since when nothing moved
STARTING = "starting"
LATELY = 50  # rounds and warnings that are kept
LEVELS = ("WARNING", "ERROR", "CRITICAL")
NOISE = "No fit_metrics_aggregation_fn provided"  # Flower's, in every run: our metrics travel in our header


@dataclass
class ClientSeen:
    """A client as the server knows it: ``answers`` are rounds that it trained in, ``value`` its primary
    measure as last measured."""

    value: float | None = None
    answers: int = 0
    failures: int = 0
    round: int = 0
    time: str | None = None  # of its last answer, ISO


class RunProgress:
    """The state of a run after ``update``; safe to call while the run writes, or after it was killed.

    Raises RunError for a directory that is none of a run.
    """

    metrics: RunMetrics
    rounds: deque[Row]
    warnings: deque[Row]
    clients: dict[str, ClientSeen]
    _rounds: Growing
    _clients: Growing
    _log: Growing

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.status: Row = {}
        self.changes: dict[str, str] = {}  # what the command changed of the experiment
        self._status_file = run_dir / "status.json"
        self._begin()
        if not (run_dir / "logs").is_dir() and not self._status_file.is_file():
            raise RunError(f"{run_dir} is not a run directory: give the one that `fedsa-lora run` printed")
        self.update()

    @property
    def state(self) -> str:
        """starting, running, completed, failed or stopped."""
        return str(self.status.get("state", STARTING))

    @property
    def primary(self) -> Measure:
        """The measure that its clients are compared by."""
        return self.metrics.primary

    @property
    def done(self) -> int:
        return self.metrics.sums["rounds"]

    @property
    def seconds(self) -> float | None:
        """From its start to its end, or to now."""
        started, ended = (_moment(self.status.get(name)) for name in ("started", "ended"))
        return None if started is None else (ended or time.time()) - started

    @property
    def left(self) -> float | None:
        """Seconds to its end, at the usual speed of the last ten rounds."""
        lately = [row.get("seconds") or 0.0 for row in self.rounds][-10:]
        missing = self.metrics.planned - self.done
        if self.state != "running" or not lately or missing < 0 or self.quiet:
            return None
        gone = time.time() - self._changed(ROUNDS)
        return max(0.0, missing * median(lately) - gone)

    @property
    def moved(self) -> float:
        """Time when something was last written, in seconds since 1970."""
        files = ("status.json", ROUNDS, CLIENTS, SERVER_LOG, "logs/flower.log", "logs")
        return max(map(self._changed, files))

    @property
    def quiet(self) -> bool:
        """True where a run that has not ended wrote nothing for so long that it may have been killed."""
        usual = median([row.get("seconds") or 0.0 for row in self.rounds] or [0.0])
        waited = time.time() - self.moved
        return self.state in (STARTING, "running") and waited > max(QUIET_SECONDS, 5 * usual)

    def update(self) -> None:
        """Read what was written since the last time."""
        if any(file.replaced() for file in (self._rounds, self._clients, self._log)):
            self._begin()
        if self._status_file.is_file():
            self.status = read_json(self._status_file)
            self.metrics.planned = self.status.get("rounds") or 0
            environment = self.run_dir / "environment.json"
            known = read_json(environment) if environment.is_file() else {}
            self.changes = changes_of(known.get("command", ""))
        if not self.done:  # written before any row
            self.metrics.primary = primary_in(self.run_dir)
        for row in self._rounds.rows():
            self._take_round(row)
        for row in self._clients.rows():
            self._take_client(row)
        for row in self._log.rows():
            self._take_logged(row)

    def _begin(self) -> None:
        files = (self.run_dir / name for name in (ROUNDS, CLIENTS, SERVER_LOG))
        self._rounds, self._clients, self._log = map(Growing, files)
        self.metrics = RunMetrics(self.run_dir, 0, primary_in(self.run_dir))
        self.rounds, self.warnings, self.clients = deque(maxlen=LATELY), deque(maxlen=LATELY), {}

    def _take_round(self, row: Row) -> None:
        self.metrics.add(row)
        self.rounds.append(row)
        for remark in failures(row):
            if remark["client"] is not None:
                self._client(remark["client"]).failures += 1

    def _take_client(self, row: Row) -> None:
        seen = self._client(str(row["client"]))
        seen.round = row.get("round") or seen.round
        seen.answers += row.get("phase") == "fit"
        if row.get(self.primary.name) is not None:
            seen.value = row[self.primary.name]

    def _take_logged(self, row: Row) -> None:
        if row.get("event") == "answer":
            self._client(str(row.get("client"))).time = row.get("time")
        if row.get("level") in LEVELS and row.get("message") != NOISE:
            self.warnings.append(row)

    def _client(self, name: str) -> ClientSeen:
        return self.clients.setdefault(name, ClientSeen())

    def _changed(self, name: str) -> float:
        path = self.run_dir / name
        return path.stat().st_mtime if path.exists() else 0.0


def _moment(iso: str | None) -> float | None:
    try:
        return datetime.fromisoformat(iso or "").timestamp()
    except ValueError:
        return None
