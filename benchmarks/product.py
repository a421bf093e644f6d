"""The product as the benchmarks run it: ServerApp and ClientApp in this process, with messages and stores,
each phase of a round timed, and what is trained and measured timed within it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fedsa_lora.client.workbench import Workbench
from fedsa_lora.launch.plan import LARGEST_COHORT
from fedsa_lora.learning.job import Job, Outcome, Trainer
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl
from fedsa_lora.server_app import RecordedServer

PLAIN = ("run.report=false", "evaluation.local_only=false", "evaluation.before=false")


@dataclass
class Spent:
    """CPU seconds of the phases of rounds, and of the trainer within each; ``rows`` are those of clients."""

    fit: list[float] = field(default_factory=list)
    evaluate: list[float] = field(default_factory=list)
    fit_trainer: list[float] = field(default_factory=list)
    evaluate_trainer: list[float] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


class TimedTrainer:
    """A trainer that adds up its CPU seconds."""

    seconds = 0.0

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __call__(self, jobs: Sequence[Job]) -> list[Outcome]:
        started = time.process_time()
        try:
            return self.trainer(jobs)
        finally:
            TimedTrainer.seconds += time.process_time() - started


def run(overrides: Sequence[str], after: Callable[[int], None] = lambda round_: None) -> Spent:
    """Run a federation, as many clients in one pass as ``fedsa-lora run`` takes in one process; ``after``
    each round something else may be done, which is not counted."""
    spent = Spent()
    with tempfile.TemporaryDirectory() as folder, _timed(spent, after):
        together = f"machine.cohort={LARGEST_COHORT}"
        run_dir = run_in_process([together, *overrides, f"run.dir={folder}/run"])
        spent.rows = read_jsonl(Path(run_dir) / "clients.jsonl")
    return spent


@contextmanager
def _timed(spent: Spent, after: Callable[[int], None]) -> Iterator[None]:
    trainer_of = Workbench.__dict__["trainer"].func
    trainer = cached_property(lambda bench: _timed_within(trainer_of(bench)))
    trainer.__set_name__(Workbench, "trainer")
    fit_round, evaluate_round = RecordedServer.fit_round, RecordedServer.evaluate_round

    def fit(server: RecordedServer, server_round: int, timeout: float | None) -> Any:
        return _phase(spent.fit, spent.fit_trainer, fit_round, server, server_round, timeout)

    def evaluate(server: RecordedServer, server_round: int, timeout: float | None) -> Any:
        found = _phase(spent.evaluate, spent.evaluate_trainer, evaluate_round, server, server_round, timeout)
        after(server_round)
        return found

    with (
        patch.object(Workbench, "trainer", trainer),
        patch.object(RecordedServer, "fit_round", fit),
        patch.object(RecordedServer, "evaluate_round", evaluate),
    ):
        yield


def _timed_within(trainer: Any) -> Trainer:
    """A trainer that is timed; of one that gathers the jobs of several clients for another, the other."""
    if hasattr(trainer, "trainer"):
        return replace(trainer, trainer=TimedTrainer(trainer.trainer))
    return TimedTrainer(trainer)


def _phase(spent: list[float], in_trainer: list[float], phase: Callable[..., Any], *given: Any) -> Any:
    trained, started = TimedTrainer.seconds, time.process_time()
    found = phase(*given)
    spent.append(time.process_time() - started)
    in_trainer.append(TimedTrainer.seconds - trained)
    return found
