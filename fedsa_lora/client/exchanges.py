"""The two exchanges of split learning: a round of steps, and a measurement."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsa_lora.client.session import Indices, Session
from fedsa_lora.exchange.arrays import Arrays, NamedArrays
from fedsa_lora.exchange.step import Step
from fedsa_lora.learning.cut.trained import Trained
from fedsa_lora.learning.job import as_array
from fedsa_lora.learning.report import TrainReport
from fedsa_lora.learning.training import finite
from fedsa_lora.tasks.task import Task, measured


class Steps(Session):
    """A round of steps. For M micro-batches a step has M + 1 messages: message j brings h2 of micro-batch
    j - 1 and g1 of j - 2, and is answered with g2 of j - 1 and h1 of j."""

    def __init__(self, *terms: Any) -> None:
        super().__init__(*terms)
        job = self.local.job()
        self.examples, self._batches = job.examples, job.batches
        most = self.ends.cut.micro_batches
        self._parts = [np.array_split(batch, min(most, len(batch))) for batch in job.batches]
        places = [(step, at) for step, parts in enumerate(self._parts) for at in range(len(parts) + 1)]
        self._places = [*places, (len(self._parts), 0)]  # step and part of each message, that of the end last
        self.trained = Trained(
            self.bench.model,
            job.values,
            job.trained,
            self.local.settings,
            len(job.batches),
            self.bench.elsewhere,
        )
        self._losses: list[float] = []  # of each step, a mean over terms
        self._seconds = 0.0
        self._norms: NDArray[np.float32] | None = None  # of this side's gradients in the last step

    @property
    def end(self) -> int:
        return len(self._places) - 1

    def advance(self, step: Step) -> Step | None:
        began = time.perf_counter()
        self.follow(step)
        at, part = self._places[self.number]
        stepped = part == 0 and at > 0
        if stepped:
            self._end_step(step, at - 1)
        answer = None if self.number == self.end else self._answer(step, at, part, stepped)
        self._seconds += time.perf_counter() - began
        return answer

    def _answer(self, step: Step, at: int, part: int, stepped: bool) -> Step:
        """The answer within a step: g2 of one micro-batch and h1 of the next, as far as there are such."""
        tensors, loss = {}, None
        with self.trained.lent(training=True):
            if part >= 2:
                self._backward(step, at, part - 2)
            if part:
                tensors["g2"], loss = self._forward(step, at, part - 1)
            if part == len(self._parts[at]):
                return Step(self.number, tensors, last=True, loss=loss)
            self._seed("bottom", at, part)
            batch = self._batch(self._parts[at][part])
            norms = self._norms if stepped else None
            return self._up(batch, tensors=tensors, loss=loss, stepped=stepped, norms=norms)

    def _end_step(self, step: Step, at: int) -> None:
        """The last gradients of a step, and the step of the optimizer."""
        with self.trained.lent(training=True):
            self._backward(step, at, len(self._parts[at]) - 1)
        self._norms = self.trained.norms()
        self.trained.step(step.norms)

    def _forward(self, step: Step, at: int, part: int) -> tuple[NDArray[np.float32], float]:
        """g2 of a micro-batch, and its share of the step's loss."""
        states = self._states(step, "h2").requires_grad_()
        indices = self._parts[at][part]
        self._seed("top", at, part)
        loss = self._share(at, part) * self.bench.task.loss(self.ends.top(states), self._batch(indices))  # type: ignore[arg-type]
        value = finite(loss.item(), at, len(self._parts), self.local.settings)
        torch.autograd.backward(loss)
        if part == 0:
            self._losses.append(0.0)
        self._losses[-1] += value
        assert states.grad is not None
        return as_array(states.grad), value

    def _backward(self, step: Step, at: int, part: int) -> None:
        """Compute the first blocks again, and their gradients from g1."""
        gradient = self._states(step, "g1")
        self._seed("bottom", at, part)
        states = self.ends.bottom(self._batch(self._parts[at][part]))
        if states.requires_grad:
            states.backward(gradient)  # type: ignore[no-untyped-call]

    def _share(self, at: int, part: int) -> float:
        """The share of a micro-batch in the terms that the loss of a step is the mean of."""
        terms = [self._terms(indices) for indices in self._parts[at]]
        return terms[part] / max(1, sum(terms))

    def _terms(self, indices: Indices) -> int:
        task: Any = self.bench.task
        found: int = task.terms(self.examples, indices)
        return found

    @property
    def farewell(self) -> Step:
        """The message with which the server can take its last step."""
        return Step(self.number, stepped=True, norms=self._norms)

    @property
    def report(self) -> TrainReport:
        """Report of the round."""
        total = sum(loss * len(batch) for loss, batch in zip(self._losses, self._batches, strict=True))
        passes = [part for parts in self._parts for part in parts]
        return TrainReport.of(self.examples, self._batches, passes, total, self._seconds)

    def ids(self) -> Iterator[NDArray[np.int64]]:
        at, _ = self._places[self.number]
        for index in self._batches[at]:
            yield self.examples.features["labels"][index]

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        words = {"losses": self._losses, "seconds": self._seconds, "steps": self.trained.steps}
        return self.trained.state(), words

    def go_on(self, arrays: NamedArrays, words: dict[str, Any]) -> None:
        self.trained.restore(arrays, words["steps"])
        self._losses, self._seconds = words["losses"], words["seconds"]


class Measurement(Session):
    """An evaluation: h1 of a batch goes up, and is answered with its h2, until every batch was measured."""

    def __init__(self, *terms: Any) -> None:
        super().__init__(*terms)
        examples, size = self.local.examples, self.local.settings.eval_batch_size
        self._order = np.argsort(examples.lengths, kind="stable")
        self._batches = [self._order[at : at + size] for at in range(0, len(examples), size)]
        self._answers: list[NDArray[np.float32]] = []
        self._own = Trained(self.bench.model, self.local.values, frozenset(), self.local.settings, steps=0)

    @property
    def end(self) -> int:
        return len(self._batches)

    def advance(self, step: Step) -> Step | None:
        self.follow(step)
        with self._own.lent(training=False):
            if self.number:
                states = self._states(step, "h2")
                batch = self._batch(self._batches[self.number - 1])
                with torch.no_grad():
                    found = self.bench.task.predict(self.ends.top(states), batch)  # type: ignore[arg-type]
                self._answers.append(as_array(found))
            if self.number == self.end:
                return None
            return self._up(self._batch(self._batches[self.number]))

    def measured(self, task: Task) -> dict[str, float]:
        """The measures of the task on all examples."""
        by_length = np.concatenate(self._answers)
        answers = np.empty_like(by_length)
        answers[self._order] = by_length
        return measured(task, answers, self.local.examples.labels)

    def ids(self) -> Iterator[NDArray[np.int64]]:
        for index in self._batches[self.number]:
            yield self.local.examples.features["labels"][index]

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        return {f"{at:06d}": answers for at, answers in enumerate(self._answers)}, {}

    def go_on(self, arrays: NamedArrays, words: dict[str, Any]) -> None:
        self._answers = [arrays[name] for name in sorted(arrays)]
