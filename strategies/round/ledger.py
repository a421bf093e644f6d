"""The record of a round: one row for each client and phase, and one for the round."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from flwr.common import EvaluateRes, FitRes, Scalar
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import Layout, Vector
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.exchange.reported import LOSS
from strategies.round.admission import Admission, Answer


class Recorder(Protocol):
    """Receives the rows of a round."""

    def client(self, row: dict[str, Any]) -> None: ...
    def round(self, row: dict[str, Any]) -> None: ...
    def checkpoint(
        self, round_: int, layout: Layout, common: Vector, memory: dict[str, NDArray[Any]]
    ) -> None: ...


class Unwritten:
    """A recorder that forgets: for a look at what a strategy would be."""

    def client(self, row: dict[str, Any]) -> None: ...
    def round(self, row: dict[str, Any]) -> None: ...
    def checkpoint(
        self, round_: int, layout: Layout, common: Vector, memory: dict[str, NDArray[Any]]
    ) -> None: ...


@dataclass(frozen=True)
class Evaluation:
    """Rounds in which all clients are evaluated: every ``every`` rounds and in the last one.

    ``before``: in the last round clients also measure their own model before aggregation, with
    ``before_each`` in all these rounds. ``reference``: in the last round each client also trains alone, to be
    compared with.
    """

    rounds: int
    every: int = 1
    before: bool = True
    before_each: bool = False
    reference: bool = True

    def due(self, round_: int) -> bool:
        return round_ == self.rounds or (self.every > 0 and round_ % self.every == 0)

    def held(self, round_: int, skipped: int) -> bool:
        """True where all are evaluated then: it is due and counts, as up to it no round in a row was
        ``skipped``, or it is the last."""
        return round_ == self.rounds or (self.due(round_) and not skipped)

    def compares_before(self, round_: int) -> bool:
        """True where clients measure their own model before aggregation then."""
        if self.before_each:
            return self.due(round_)
        return self.before and round_ == self.rounds

    def trains_alone(self, round_: int) -> bool:
        """True where clients also train alone then, for as many rounds as the run has."""
        return self.reference and round_ == self.rounds


class Ledger:
    """Adds up what a round cost and brought, and hands it to the recorder."""

    def __init__(self, recorder: Recorder, primary: Measure) -> None:
        self.recorder, self.primary = recorder, primary
        self._started = time.perf_counter()
        self._sent: Mapping[str, int] = {}
        self._row: dict[str, Any] = {}

    def begin(self) -> None:
        self._started = time.perf_counter()

    def sends(self, bytes_down: Mapping[str, int]) -> None:
        """Bytes of the broadcast of the present phase, by client."""
        self._sent = bytes_down

    def fit(self, round_: int, admission: Admission[FitRes], said: dict[str, Any]) -> None:
        """After training; ``said`` is what the strategy adds to the row of the round."""
        rows = [
            self._client(answer)
            | {
                "phase": "fit",
                "private_before": answer.header.private_before,
                "private_after": answer.header.private_after,
            }
            for answer in admission.answers
        ]
        before = self.primary.before
        self._row = {
            "round": round_,
            "fit_clients": len(rows),
            "fit_failures": len(admission.failures),
            "remarks": [asdict(remark) for remark in admission.remarks],
            "fit_seconds": time.perf_counter() - self._started,
            "loss": weighted_mean([(r["loss"], r["examples"]) for r in rows if r.get("steps", 1)]),  # trained
            before: plain_mean([row[before] for row in rows if before in row]),
            "bytes_up": admission.bytes_up,
            "bytes_down": sum(self._sent.values()),
            **said,
        }
        for row in rows:
            self.recorder.client(row)

    def aggregated(self, said: dict[str, Any]) -> None:
        """Adds facts of the round that are known once it is aggregated."""
        self._row |= said

    def exchanged(self, phase: str, up: Mapping[str, int], down: Mapping[str, int]) -> None:
        """Adds the bytes of the steps of a phase, by what they are."""
        self._row[f"{phase}_step_bytes"] = {**up, **down}
        self._row["bytes_up"] += sum(up.values())
        self._row["bytes_down"] += sum(down.values())

    def evaluate(self, admission: Admission[EvaluateRes]) -> list[dict[str, Any]]:
        """After evaluation: the primary measure over the clients that were measured: mean, weighted by test
        examples, worst. Returns the rows of all that answered."""
        rows = [
            self._client(answer) | {"phase": "evaluate", "examples": answer.header.measured}
            for answer in admission.answers
        ]
        for row in rows:
            self.recorder.client(row)
        primary, row = self.primary, self._row
        values = [(r[primary.name], r["measured"]) for r in rows if r["measured"]]
        of_global = [(r[primary.of_global], r["measured"]) for r in rows if primary.of_global in r]
        row["remarks"] = row["remarks"] + [asdict(remark) for remark in admission.remarks]
        row["bytes_up"] += admission.bytes_up
        row["bytes_down"] += sum(self._sent.values())
        row |= {
            "measured_clients": len(values),
            primary.name: plain_mean([value for value, _ in values]),
            primary.weighted: weighted_mean(values),
            primary.worst: min((value for value, _ in values), key=primary.merit, default=None),
            primary.of_global: weighted_mean(of_global),
        }
        return rows

    def reached(self, measured: Sequence[dict[str, Any]]) -> tuple[float | None, dict[str, Scalar]]:
        """The loss and the primary measure over the rows of clients that were measured, for Flower."""
        loss = weighted_mean([(row[LOSS], row["measured"]) for row in measured if LOSS in row])
        mean = plain_mean([row[self.primary.name] for row in measured])
        return loss, {} if mean is None else {self.primary.name: mean}

    def close(self, evaluated: bool) -> None:
        seconds = time.perf_counter() - self._started
        self.recorder.round(self._row | {"evaluated": evaluated, "seconds": seconds})

    def _client(self, answer: Answer[Any]) -> dict[str, Any]:
        header = answer.header
        return {
            **header.report,
            "round": header.round,
            "client": header.client,
            "examples": header.examples,
            "measured": header.measured,
            "bytes_up": answer.size,
            "bytes_down": self._sent.get(header.client, 0),
        }


def plain_mean(values: Sequence[float]) -> float | None:
    """Mean; None when there are no values."""
    return float(np.mean(values)) if values else None


def weighted_mean(pairs: Sequence[tuple[float, int]]) -> float | None:
    """Mean of (value, weight) pairs; None when there are none."""
    if not pairs:
        return None
    values, weights = zip(*pairs, strict=True)
    return float(np.average(values, weights=weights))
