"""Clients that are served at the same time: the jobs that they ask for go to the trainer together."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import Generic, TypeVar

from fedsa_lora.errors import TrainingError
from fedsa_lora.learning.job import Job, Outcome, Trainer

log = logging.getLogger("flwr")
Result = TypeVar("Result")
Outcomes = list[Outcome | TrainingError]
Ask = Callable[[Trainer, Sequence[Job]], Outcomes]
_ask: ContextVar[Ask | None] = ContextVar("ask", default=None)


@dataclass(frozen=True)
class Together:
    """A trainer that takes the jobs of all calls of ``at_the_same_time`` at once; outside of those it is the
    plain one."""

    trainer: Trainer

    def __call__(self, jobs: Sequence[Job]) -> Outcomes:
        ask = _ask.get()
        return self.trainer(jobs) if ask is None else ask(self.trainer, jobs)


def at_the_same_time(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """Make calls side by side: each runs until it asks a trainer for outcomes, and when all that have not
    ended do, the trainer is asked for those of all, in the order of the calls.

    Only one of them runs at any time, in a separate thread; the trainer runs in this one. Returns what they
    return, and raises what the first of them raises.
    """
    if len(calls) == 1:
        return [calls[0]()]
    members = [_Member(call) for call in calls]
    answers: dict[_Member[Result], Outcomes | BaseException] = {}
    waiting = members
    try:
        while waiting:
            for member in waiting:
                member.go_on(answers.pop(member, None))
            waiting = [member for member in waiting if member.asked is not None]
            answers = _answers(waiting)
    except BaseException as stop:  # a signal, as a rule: none is left behind with what it holds
        for member in waiting:
            if member.asked is not None:
                member.go_on(stop)
        raise
    return [member.result() for member in members]


class _Member(Generic[Result]):
    """A call in a separate thread, which is there only while nobody else runs."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self.asked: tuple[Trainer, Sequence[Job]] | None = None  # what it waits for
        self._call = call
        self._questions: SimpleQueue[tuple[Trainer, Sequence[Job]] | None] = SimpleQueue()
        self._answers: SimpleQueue[Outcomes | BaseException] = SimpleQueue()
        self._results: list[Result] = []
        self._error: BaseException | None = None
        run = partial(copy_context().run, self._run)
        self._thread = threading.Thread(target=run, daemon=True)

    def go_on(self, answer: Outcomes | BaseException | None) -> None:
        """Let it continue with an answer, or begin, until it asks again or ends."""
        if answer is None:
            self._thread.start()
        else:
            self._answers.put(answer)
        self.asked = self._questions.get()

    def result(self) -> Result:
        """The result, once it has ended. Raises what the call raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        _ask.set(self._ask)
        try:
            self._results.append(self._call())
        except BaseException as error:
            self._error = error
        self._questions.put(None)

    def _ask(self, trainer: Trainer, jobs: Sequence[Job]) -> Outcomes:
        self._questions.put((trainer, jobs))
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _answers(members: Sequence[_Member[Result]]) -> dict[_Member[Result], Outcomes | BaseException]:
    """The outcomes for each; where the trainer fails for all of them, those of each alone."""
    asked = {member: member.asked for member in members if member.asked is not None}
    if not asked:
        return {}
    trainer = next(iter(asked.values()))[0]
    try:
        outcomes = iter(trainer([job for _, jobs in asked.values() for job in jobs]))
        return {member: list(islice(outcomes, len(jobs))) for member, (_, jobs) in asked.items()}
    except Exception as error:  # not expected, and no fault of those that others would fail for
        log.warning("a pass over %d clients failed, so each is computed alone: %s", len(asked), error)
        return {member: _alone(trainer, jobs) for member, (_, jobs) in asked.items()}


def _alone(trainer: Trainer, jobs: Sequence[Job]) -> Outcomes | BaseException:
    try:
        return trainer(jobs)
    except Exception as error:
        return error
