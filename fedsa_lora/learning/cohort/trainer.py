"""A trainer that does jobs K at a time in one pass, with the results of one after another up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fedsa_lora.errors import TrainingError
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.cohort.block import Block
from fedsa_lora.learning.cohort.fit import alike, why_not_any, why_not_job
from fedsa_lora.learning.cohort.passes import ON_CPU
from fedsa_lora.learning.cohort.products import Products
from fedsa_lora.learning.job import Job, OneByOne, Outcome
from fedsa_lora.tasks.task import Task


@dataclass(frozen=True)
class Cohort:
    """Jobs in blocks of at most ``size``, in their order, each block in one pass, or in several where the
    batches of its clients have more than ``tokens`` together. Jobs that ``why_not`` has a reason against are
    done one by one, and so is the training of a job that is the only one of its block, which would gain
    nothing."""

    model: AdapterModel
    task: Task
    size: int
    tokens: int = ON_CPU
    _products: Products = field(default_factory=Products, init=False, compare=False, repr=False)

    def __call__(self, jobs: Sequence[Job]) -> list[Outcome | TrainingError]:
        alone = OneByOne(self.model, self.task)
        outcomes: dict[int, Outcome | TrainingError] = {}
        kinds: dict[object, list[int]] = {}
        for at, job in enumerate(jobs):
            if self._reason or why_not_job(job, self.task):
                (outcomes[at],) = alone([job])
            else:
                kinds.setdefault(alike(job), []).append(at)
        for places in kinds.values():
            for begin in range(0, len(places), self.size):
                block = places[begin : begin + self.size]
                chosen = [jobs[at] for at in block]
                if len(chosen) == 1 and chosen[0].batches:
                    found = alone(chosen)
                else:
                    found = Block(alone, chosen, self.tokens, self._products).outcomes()
                outcomes |= zip(block, found, strict=True)
        return [outcomes[at] for at in range(len(jobs))]

    @cached_property
    def _reason(self) -> str | None:
        return why_not_any(self.model, self.task)
