"""Training as values: a job goes in, an outcome comes out, and no one but a trainer moves a live model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsa_lora.errors import FedSAError, TrainingError
from fedsa_lora.exchange.arrays import Arrays, NamedArrays
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.importance import ImportanceMeter, Scores, Scoring
from fedsa_lora.learning.report import TrainReport
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import Objective, predict, train
from fedsa_lora.tasks.task import Examples, Task

Extension = Callable[[AdapterModel], AbstractContextManager[Mapping[str, nn.Parameter]]]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training from given values, complete but for the backbone and the task.

    ``values`` are all tensors of the model's layout, ``merged`` what is in the frozen weights besides, by
    layer (d_out, d_in); ``trained`` are the names of those that move. ``batches`` are indices of
    ``examples``, one array for each step: without any nothing is trained. ``dropout`` is a seed.
    mu/2 ||w - anchor||^2 is added to the ``objective`` (FedProx, arXiv:1812.06127). ``scoring`` asks for
    scores of tensors. An ``extension`` is what the model computes besides while the job lasts; it yields
    its own parameters, which are trained as well. ``asked`` are examples that the trained model answers,
    with what ``read`` makes of them.
    """

    values: NamedArrays
    trained: frozenset[str]
    examples: Examples
    settings: TrainSettings
    batches: Sequence[NDArray[np.int64]] = ()
    dropout: int = 0
    merged: NamedArrays = field(default_factory=dict)
    objective: Callable[[AdapterModel, Task, Examples, TrainSettings], Objective] = Objective
    anchor: NamedArrays = field(default_factory=dict)
    mu: float = 0.0
    scoring: Scoring | None = None
    extension: Extension | None = None
    asked: Sequence[Examples] = ()
    read: Callable[[AdapterModel, Task, Examples, TrainSettings], NDArray[np.float32]] = predict


@dataclass(frozen=True)
class Outcome:
    """Result of a job.

    ``start`` and ``values`` are all tensors before its first step, as they stood in the model, and after its
    last. ``scores`` are there if they were asked for. ``extension`` are the parameters of the job's, by name;
    ``answers`` are, for each of ``Job.asked``, its predictions (n, ...) or what else was read.
    """

    start: Arrays
    values: Arrays
    report: TrainReport
    scores: Scores | None = None
    extension: Arrays = field(default_factory=dict)
    answers: tuple[NDArray[np.float32], ...] = ()

    def __add__(self, other: Outcome) -> Outcome:
        """One training after another, as one."""
        scores = self.scores
        if scores is not None and other.scores is not None:
            scores = scores + other.scores
        return replace(other, start=self.start, report=self.report + other.report, scores=scores)


class Trainer(Protocol):
    """Does jobs, each as if there were no other."""

    def __call__(self, jobs: Sequence[Job]) -> list[Outcome | TrainingError]:
        """The outcomes in the order of the jobs; an error in the place of one that cannot be done."""
        ...


@dataclass(frozen=True)
class OneByOne:
    """One job after another on one resident model, which each overwrites completely."""

    model: AdapterModel
    task: Task

    def __call__(self, jobs: Sequence[Job]) -> list[Outcome | TrainingError]:
        outcomes: list[Outcome | TrainingError] = []
        for job in jobs:
            try:
                outcomes.append(self._outcome(job))
            except TrainingError as error:
                outcomes.append(error)
        return outcomes

    def _outcome(self, job: Job) -> Outcome:
        model = self.model
        start = self.install(job)
        meter = None if job.scoring is None else ImportanceMeter(job.scoring)
        report = TrainReport()
        with nullcontext({}) if job.extension is None else job.extension(model) as parameters:
            if job.batches:
                report = train(
                    model,
                    self.task,
                    job.examples,
                    job.settings,
                    trained=job.trained,
                    batches=job.batches,
                    torch_seed=job.dropout,
                    objective=job.objective,
                    proximal=(job.mu, job.anchor) if job.mu else None,
                    observe=None if meter is None else meter.observe,
                    beside=tuple(parameters.values()),
                )
            answers = tuple(job.read(model, self.task, asked, job.settings) for asked in job.asked)
            extension = {name: as_array(parameter) for name, parameter in parameters.items()}
        scores = None if meter is None else meter.scores()
        return Outcome(start, model.read(), report, scores, extension, answers)

    def install(self, job: Job) -> Arrays:
        """Overwrite the model and what is merged into it. Returns its tensors as they then stand in it.
        Raises TrainingError where they are others than the job's."""
        self.model.merge(job.merged)
        self.model.write(job.values)
        standing = self.model.read()
        # a backbone is added to its pretrained value and taken off again, which rounds
        exact = job.values.keys() - self.model.relative
        if wrong := sorted(n for n in exact if not np.array_equal(standing[n], job.values[n])):
            raise TrainingError(f"these tensors were not installed as they should be: {wrong}")
        return standing


def complete(
    trainings: Sequence[Generator[Job, Outcome, Result]], trainer: Trainer
) -> list[Result | FedSAError]:
    """Carry out trainings that each yield one job after another and are handed its outcome: the next jobs of
    all go to the trainer together. An error in the place of an outcome is raised in its training alone.

    Returns what each training returns, in their order, or the error that ended it.
    """
    results: dict[int, Result | FedSAError] = {}
    outcomes: dict[int, Outcome | TrainingError | None] = dict.fromkeys(range(len(trainings)))
    while outcomes:
        jobs: dict[int, Job] = {}
        for at, outcome in outcomes.items():
            try:
                jobs[at] = _advance(trainings[at], outcome)
            except StopIteration as end:
                results[at] = end.value
            except FedSAError as error:
                results[at] = error
        outcomes = dict(zip(jobs, trainer([*jobs.values()]), strict=True))
    return [results[at] for at in range(len(trainings))]


def settled(result: Result | FedSAError) -> Result:
    """The result. Raises the error that is in its place."""
    if isinstance(result, FedSAError):
        raise result
    return result


def _advance(training: Generator[Job, Outcome, Result], outcome: Outcome | TrainingError | None) -> Job:
    """The next job of a training; without an outcome its first."""
    if outcome is None:
        return next(training)
    if isinstance(outcome, TrainingError):
        return training.throw(outcome)
    return training.send(outcome)


def as_array(tensor: torch.Tensor) -> NDArray[np.float32]:
    """A copy of a tensor's values."""
    values: NDArray[np.float32] = tensor.detach().float().cpu().numpy().copy()
    return values
