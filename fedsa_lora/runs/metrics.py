"""Metrics of a run for Prometheus, from the rows of its rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedsa_lora.exchange.measure import Measure
from fedsa_lora.runs.outcomes import FAILURES, failures
from fedsa_lora.runs.reading import Row
from fedsa_lora.telemetry.exposition import METRICS, Metric, publish

STATES = ("running", "completed", "failed", "stopped")
FINISHING = "finishing"  # a phase of a running run: every round is whole, its results are being written
ROUNDS, CLIENTS = "rounds.jsonl", "clients.jsonl"
LAST_ROUND = (
    ("round_clients", "fit_clients", "Clients that trained in the last round."),
    ("round_loss", "loss", "Training loss of the last round, mean over clients."),
    ("round_seconds", "seconds", "Duration of the last round."),
)


class RunMetrics:
    """Sums over the rows of a run so far, and its last row."""

    def __init__(self, run_dir: Path, planned: int, primary: Measure, rows: Iterable[Row] = ()) -> None:
        self.run_dir, self.planned, self.primary = run_dir, planned, primary
        self.failures: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self.last: Row = {}
        self.measured: Row = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Take in the row of a round."""
        self.last = row
        if row.get(self.primary.name) is not None:
            self.measured = row
        self.failures.update(remark["kind"] for remark in failures(row))
        for name in ("bytes_up", "bytes_down", "seconds"):
            self.sums[name] += row.get(name) or 0
        self.sums["rounds"] += 1

    def publish(self, state: str) -> None:
        """Write ``metrics.prom`` into the run directory."""
        publish(self.run_dir / METRICS, self._metrics(state), {"run": self.run_dir.name})

    def _metrics(self, state: str) -> Iterator[Metric]:
        rows = self.run_dir / ROUNDS
        ended = rows.stat().st_mtime if rows.is_file() else None
        states = [({"state": name}, int(name == state)) for name in STATES]
        failed = [({"kind": kind}, self.failures[kind]) for kind in FAILURES]
        traffic = [({"direction": way}, self.sums[f"bytes_{way}"]) for way in ("up", "down")]
        yield Metric("run_state", "gauge", "1 for the state that the run is in.", states)
        yield Metric("rounds_total", "counter", "Rounds done.", [({}, self.sums["rounds"])])
        yield Metric("rounds_planned", "gauge", "Rounds planned.", [({}, self.planned)])
        yield Metric("failures_total", "counter", "Failed answers, by kind.", failed)
        yield Metric("traffic_bytes_total", "counter", "Bytes to and from all clients.", traffic)
        yield self._over_clients()
        yield Metric("rounds_seconds_total", "counter", "Time of all rounds.", [({}, self.sums["seconds"])])
        yield Metric("last_round_timestamp_seconds", "gauge", "When the last round ended.", [({}, ended)])
        for name, key, meaning in LAST_ROUND:
            yield Metric(name, "gauge", meaning, [({}, self.last.get(key))])

    def _over_clients(self) -> Metric:
        """The primary measure over clients, as last measured."""
        primary = self.primary
        keys = {"mean": primary.name, "weighted": primary.weighted, "worst": primary.worst}
        samples = [({"over": how}, self.measured.get(key)) for how, key in keys.items()]
        if primary.format == "percent":
            return Metric(
                f"{primary.name}_ratio", "gauge", "Over clients, on own test examples, 0 to 1.", samples
            )
        better = "higher" if primary.higher_is_better else "lower"
        return Metric(
            primary.name, "gauge", f"Over clients, on own test examples; {better} is better.", samples
        )
