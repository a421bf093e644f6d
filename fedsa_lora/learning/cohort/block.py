"""A block of jobs on the rows of one buffer: their steps together, then their answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fedsa_lora.errors import TrainingError
from fedsa_lora.exchange.arrays import Arrays
from fedsa_lora.learning.cohort.answers import Logits, answer
from fedsa_lora.learning.cohort.fit import spread
from fedsa_lora.learning.cohort.flat import FlatModel
from fedsa_lora.learning.cohort.masks import FlatMasks
from fedsa_lora.learning.cohort.optimizer import Optimizer, Pull
from fedsa_lora.learning.cohort.packed import Corpus, Packed
from fedsa_lora.learning.cohort.products import Products
from fedsa_lora.learning.cohort.rows import Rows
from fedsa_lora.learning.dropout import Sites
from fedsa_lora.learning.importance import ImportanceMeter
from fedsa_lora.learning.job import Job, OneByOne, Outcome
from fedsa_lora.learning.report import TrainReport
from fedsa_lora.learning.training import autocast, dropout_sites, finite

NONE = np.zeros(0, np.int64)


class Block:
    """Jobs that are done together, in passes of at most so many ``tokens`` of several clients. Their rows are
    in the order of their steps, so that those that still train are the first."""

    def __init__(self, alone: OneByOne, jobs: Sequence[Job], tokens: int, products: Products) -> None:
        self._alone, self._model, self._most = alone, alone.model, tokens
        self._products = products
        self.places = sorted(range(len(jobs)), key=lambda at: -len(jobs[at].batches))
        self.jobs = [jobs[at] for at in self.places]
        self._settings = jobs[0].settings
        kind = self._model.parameter(self._model.layout.names[0]).dtype
        if self._settings.precision != "fp32":
            kind = self._settings.dtype
        self.rows = Rows(self._model, jobs[0].trained, len(jobs), kind)
        self._each = spread(self._model)
        self._tokens = [_trained_tokens(job) for job in self.jobs]
        self._meters = {k: ImportanceMeter(job.scoring) for k, job in enumerate(self.jobs) if job.scoring}
        self._totals = np.zeros(len(jobs))  # of losses over examples
        self._seconds = 0.0
        self._rows = 0  # of all passes
        self.errors: dict[int, TrainingError] = {}
        self._flat: FlatModel
        self._sites: Sites | None = None

    def outcomes(self) -> list[Outcome | TrainingError]:
        """The outcomes of the jobs, in the order that they were given in; an error in the place of one."""
        starts = self._install()
        # over the weights as they are installed
        self._flat = FlatModel(self._model, self.rows, self._products)
        if self.jobs[0].batches:
            self._sites = self._dropout()
        with self._flat.installed():
            self.train()
            answers = answer(self._flat, self._alone, self.jobs, self._settings, self._most // 2)
        found: dict[int, Outcome | TrainingError] = {}
        for k, place in enumerate(self.places):
            found[place] = self.errors[k] if k in self.errors else self._outcome(k, starts[k], answers[k])
        return [found[place] for place in range(len(self.jobs))]

    def _outcome(self, k: int, start: Arrays, answers: Sequence[Logits]) -> Outcome:
        meter = self._meters.get(k)
        scores = None if meter is None else meter.scores()
        return Outcome(start, self._values(k, start), self._report(k), scores, {}, tuple(answers))

    def _install(self) -> dict[int, Arrays]:
        """Fill the rows. Returns the tensors of each client as they stand in the model."""
        starts = {}
        for k, job in enumerate(self.jobs):
            try:
                starts[k] = self._alone.install(job)
            except TrainingError as error:
                self.errors[k] = error
            self.rows.take(k, self._model)
        self.rows.refresh()
        return starts

    def train(self) -> None:
        """Every step of every job."""
        steps = max(len(job.batches) for job in self.jobs)
        if not steps:
            return
        began = time.perf_counter()
        self._model.set_mode(training=True)
        corpus = Corpus([job.examples for job in self.jobs], self._model.device, self._alone.task.collate)
        optimizer = Optimizer(self.rows, self.jobs)
        pull = Pull(self.rows, self.jobs) if any(job.mu for job in self.jobs) else None
        for step in range(steps):
            active = [k for k, job in enumerate(self.jobs) if step < len(job.batches)]
            training = [k for k in active if k not in self.errors]
            self.rows.begin()
            for part in self._parts(training, step):
                self._add_gradients(corpus, part, step)
            self._observe(training, step)
            if pull is not None:
                pull.add(len(active))
            optimizer.step(len(active))
        self.rows.refresh()
        self._seconds = time.perf_counter() - began

    def _dropout(self) -> Sites | None:
        """The dropout sites of the model; None of one without dropout."""
        job = self.jobs[0]
        objective = job.objective(self._model, self._alone.task, job.examples, job.settings)
        sites = dropout_sites(objective, job.batches[0])
        dropping = (sites.tokens, sites.examples, sites.attention)
        return sites if any(strip.width for strip in dropping) else None

    def _parts(self, clients: Sequence[int], step: int) -> Iterator[list[int]]:
        """The clients of a step in passes of a bounded number of tokens, or of one client."""
        part: list[int] = []
        held = 0
        for k in clients:
            tokens = self._each * int(self.jobs[k].examples.lengths[self.jobs[k].batches[step]].sum())
            if part and held + tokens > self._most:
                yield part
                part, held = [], 0
            part.append(k)
            held += tokens
        if part:
            yield part

    def _add_gradients(self, corpus: Corpus, clients: Sequence[int], step: int) -> None:
        """One pass: the gradient of each client's own mean loss is in its row afterwards."""
        chosen = [NONE] * len(self.jobs)
        for k in clients:
            chosen[k] = self.jobs[k].batches[step]
        packed = corpus.pack(chosen)
        self._rows += packed.rows
        masks = self._masks(packed, clients, step)
        with autocast(self._settings, self._model.device):
            logits = self._flat.logits(packed, masks)
        means, total = _losses(logits, packed)
        torch.autograd.backward(total)
        for k in clients:
            job = self.jobs[k]
            try:
                loss = finite(means[k], step, len(job.batches), job.settings)
            except TrainingError as error:
                self.errors[k] = error
            else:
                self._totals[k] += loss * len(job.batches[step])

    def _masks(self, packed: Packed, clients: Sequence[int], step: int) -> FlatMasks | None:
        if self._sites is None:
            return None
        seeds = {k: self.jobs[k].dropout for k in clients}
        return FlatMasks.draw(self._sites, seeds, step, packed)

    def _observe(self, clients: Sequence[int], step: int) -> None:
        """Show the gradients of the losses to the meters, at every step but the first."""
        for k in clients:
            if step and k in self._meters:
                self._meters[k].observe(self.rows.client(k))

    def _values(self, k: int, start: Arrays) -> Arrays:
        """The tensors that a job ends with, as the model exchanges them."""
        if not self.jobs[k].batches:
            return start
        self._model.write(self.jobs[k].values)
        self.rows.put(k, self._model)
        return self._model.read()

    def _report(self, k: int) -> TrainReport:
        """A job's part of the rows and of the time is that of its tokens."""
        job, tokens = self.jobs[k], self._tokens[k]
        examples = sum(map(len, job.batches))
        part = tokens / max(1, sum(self._tokens))
        return TrainReport(
            loss=float(self._totals[k]) / max(1, examples),
            steps=len(job.batches),
            examples=examples,
            tokens=tokens,
            padded_tokens=round(self._rows * part),
            seconds=self._seconds * part,
        )


def _trained_tokens(job: Job) -> int:
    return int(sum(job.examples.lengths[batch].sum() for batch in job.batches))


def _losses(logits: torch.Tensor, packed: Packed) -> tuple[list[float], torch.Tensor]:
    """The mean loss of each client, and the sum of these."""
    counts = torch.tensor(packed.targets_of, device=logits.device)
    of = torch.arange(len(counts), device=logits.device).repeat_interleave(counts)
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = cross_entropy(exact, packed.targets, reduction="none") / counts[of]
    sums = losses.new_zeros(len(counts)).index_add(0, of, losses.detach())
    return torch.where(counts > 0, sums, torch.nan).tolist(), losses.sum()
