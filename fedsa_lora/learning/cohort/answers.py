"""Predictions for the examples that jobs ask about, several clients in one flat pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedsa_lora.learning.cohort.fit import spread
from fedsa_lora.learning.cohort.flat import FlatModel
from fedsa_lora.learning.cohort.packed import Corpus, Indices
from fedsa_lora.learning.job import Job, OneByOne
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import autocast
from fedsa_lora.tasks.task import Examples

Logits = NDArray[np.float32]


@torch.no_grad()
def answer(
    flat: FlatModel, alone: OneByOne, jobs: Sequence[Job], settings: TrainSettings, tokens: int
) -> list[list[Logits]]:
    """Logits (n, classes) for each of ``Job.asked`` of each job, in the order of its examples, in passes of
    about so many ``tokens``."""
    model = alone.model
    model.set_mode(training=False)
    found: list[list[Logits]] = [[] for _ in jobs]
    for turn in range(max(len(job.asked) for job in jobs)):
        asked = {k: job.asked[turn] for k, job in enumerate(jobs) if turn < len(job.asked)}
        parts = [asked.get(k, next(iter(asked.values()))) for k in range(len(jobs))]
        corpus = Corpus(parts, model.device, alone.task.collate)
        given: dict[int, list[tuple[Indices, Logits]]] = {k: [] for k in asked}
        for chosen in _passes(asked, len(jobs), max(1, tokens // spread(model))):
            with autocast(settings, model.device):
                logits = flat.logits(corpus.pack(chosen)).float().cpu().numpy()
            counts = np.cumsum([len(part) for part in chosen])[:-1]
            for k, part in enumerate(np.split(logits, counts)):
                if len(part):
                    given[k].append((chosen[k], part))
        for k, answers in given.items():
            found[k].append(_in_order(answers))
    return found


def _passes(asked: dict[int, Examples], clients: int, most: int) -> Iterator[list[Indices]]:
    """The indices of every client's examples, by length, in passes of about ``most`` tokens or images."""
    of = np.concatenate([np.full(len(examples), k) for k, examples in asked.items()])
    orders = [np.argsort(examples.lengths, kind="stable") for examples in asked.values()]
    at = np.concatenate(orders)
    lengths = np.concatenate([e.lengths[order] for e, order in zip(asked.values(), orders, strict=True)])
    begins = np.cumsum(lengths) - lengths
    number = begins // most
    for current in np.unique(number):
        here = number == current
        yield [at[here & (of == k)] for k in range(clients)]


def _in_order(answers: Sequence[tuple[Indices, Logits]]) -> Logits:
    indices = np.concatenate([at for at, _ in answers])
    logits = np.concatenate([part for _, part in answers])
    ordered = np.empty_like(logits)
    ordered[indices] = logits
    return ordered
