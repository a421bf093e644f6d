"""A client's model on the trainer of its process: what it is trained from, and what it reaches."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from fedsa_lora.client.personal import OwnModel
from fedsa_lora.client.workbench import Alone, Workbench
from fedsa_lora.exchange.arrays import NamedArrays, cut, padded
from fedsa_lora.exchange.reported import ATTACKED
from fedsa_lora.learning.job import Job
from fedsa_lora.learning.local_round import LocalRound
from fedsa_lora.predictions import from_logits
from fedsa_lora.store import ClientStore
from fedsa_lora.tasks.task import Augmenting, ClientData, Examples, Task, measured


class ClientModel:
    """Makes a client's jobs for the trainer that all clients of a process share, of its tensors, at its rank,
    and its data; and measures its own models. Their answers are kept in its ``store``."""

    def __init__(self, client: str, bench: Workbench, store: ClientStore) -> None:
        self.client, self.bench, self.store = client, bench, store
        self.layout = bench.layout(client)

    @cached_property
    def data(self) -> ClientData:
        """This client's examples."""
        return self.bench.data(self.client)

    @property
    def held_out(self) -> Examples:
        """The examples that this client is measured on; none where it is too small for such a part."""
        return self.data.held_out(self.bench.part)

    def local(self, round_: int, trained: frozenset[str], values: NamedArrays, **terms: Any) -> LocalRound:
        """This client's training of a round from given values; ``terms`` are further fields of it."""
        bench = self.bench
        local = LocalRound(
            layout=bench.model.layout,
            values=padded(values, bench.model.layout),
            examples=self.data.train,
            settings=bench.settings,
            trained=trained,
            seed=bench.seed,
            client=self.client,
            round=round_,
            augment=bench.task.augmented if isinstance(bench.task, Augmenting) else None,
        )
        return replace(local, **terms)

    def own(self, round_: int, model: OwnModel, merged: NamedArrays) -> Job:
        """The job that makes this client's own model, as the personalisation method has it used."""
        trained = self.bench.split(self.layout).trained
        local = self.local(round_, trained, model.common, merged=merged, others=model.others)
        return self.bench.personalisation.own(local, model.beside)

    def measure(self, job: Job, recorded: int | None = None) -> dict[str, float]:
        """Metrics of the model that a job ends with on this client's held-out part, of at least one example.

        With ``recorded`` its answers, where they are classes, are kept on this client's disk as those of
        this round, and it is asked about what bears the trigger of an attack.
        """
        data, task = self.held_out, self.bench.task
        names = () if recorded is None else task.client_labels(self.client)
        asked = [data]
        if names and self.data.attacked:
            asked.append(self.data.attacked)
        outcome = self.bench.outcome(replace(job, asked=asked))
        metrics = measured(task, outcome.answers[0], data.labels)
        if recorded is not None and names:
            self.store.record(from_logits(recorded, names, data.labels, outcome.answers[0]))
        for examples, answers in zip(asked[1:], outcome.answers[1:], strict=True):
            metrics[ATTACKED.name] = float((answers.argmax(axis=1) == examples.labels).mean())
        return metrics

    def train_alone(self, alone: Alone) -> float:
        """The primary measure after the same rounds of the same seeds, from the common start, alone."""
        trained = alone.split(self.layout).trained
        values: NamedArrays = cut(self.bench.initial, self.layout)
        for round_ in range(1, alone.rounds + 1):
            job = self.local(round_, trained, values, settings=alone.settings).job()
            outcome = self.bench.outcome(job)
            values = outcome.values
        return self.measure(replace(job, values=values, batches=()))[self.bench.primary.name]


def majority(task: Task, train_part: Examples, test_part: Examples) -> float:
    """The primary measure, on the test part, of always predicting the most frequent class of the train part;
    of a task with classes."""
    logits = np.zeros((len(test_part), len(task.labels())), np.float32)
    logits[:, np.bincount(train_part.labels).argmax()] = 1
    return measured(task, logits, test_part.labels)[task.measures[0].name]
