"""The resident model of a process as one client has it: made its own, trained, measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import NamedArrays, cut, padded
from fedsa_lora.exchange.reported import ATTACKED
from fedsa_lora.learning.personalisation import LocalRound
from fedsa_lora.learning.training import predict
from fedsa_lora.personal import OwnModel
from fedsa_lora.predictions import from_logits
from fedsa_lora.store import ClientStore
from fedsa_lora.tasks.task import ClientData, Examples, Task
from fedsa_lora.workbench import Alone, Workbench


class ClientModel:
    """A client's hold on what all clients of a process share: its tensors in and out, at its rank, its data,
    and what a model of its own reaches on them. What the model answers is kept in its ``store``."""

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

    def write(self, values: NamedArrays, merged: NamedArrays) -> None:
        """Set every tensor of the model, and what is merged into the frozen weights."""
        self.bench.model.merge(merged)
        self.bench.model.write(padded(values, self.bench.model.layout))

    def read(self) -> dict[str, NDArray[np.float32]]:
        """Every tensor as it stands in the model."""
        return cut(self.bench.model.read(), self.layout)

    def local(self, round_: int, trained: frozenset[str]) -> LocalRound:
        """This client's training of a round, of the model as it stands."""
        bench = self.bench
        return LocalRound(
            bench.model,
            bench.task,
            self.data.train,
            bench.settings,
            trained,
            bench.seed,
            self.client,
            round_,
        )

    @contextmanager
    def ready(self, round_: int, model: OwnModel, merged: NamedArrays) -> Iterator[None]:
        """The resident model is that of this client, as the personalisation method has it used."""
        self.write(model.common, merged)
        local = self.local(round_, self.bench.split(self.layout).trained)
        with self.bench.personalisation.ready(replace(local, others=model.others), model.beside):
            yield

    def measure(
        self, round_: int, model: OwnModel, merged: NamedArrays, record: bool = False
    ) -> dict[str, float]:
        """Metrics of a model of this client on its own held-out part, of at least one example, made ready to
        be used as the personalisation method has it. With ``record`` its answers are kept on this client's
        disk, and it is asked about what bears the trigger of an attack."""
        with self.ready(round_, model, merged):
            return self._metrics(round_ if record else None)

    def train_alone(self, alone: Alone) -> float:
        """The primary measure after the same rounds of the same seeds, from the common start, alone."""
        self.write(cut(self.bench.initial, self.layout), {})
        trained = alone.split(self.layout).trained
        for round_ in range(1, alone.rounds + 1):
            replace(self.local(round_, trained), settings=alone.settings).train()
        return self._metrics()[self.bench.primary.name]

    def _metrics(self, recorded: int | None = None) -> dict[str, float]:
        """Of the model as it stands; its answers are kept as those of a round, where they are classes."""
        data, bench = self.held_out, self.bench
        predictions = predict(bench.model, bench.task, data, bench.settings)
        metrics = bench.task.evaluate(predictions, data.labels)
        if recorded is not None and (names := bench.task.client_labels(self.client)):
            self.store.record(from_logits(recorded, names, data.labels, predictions))
            if attacked := self.data.attacked:
                answers = predict(bench.model, bench.task, attacked, bench.settings)
                metrics[ATTACKED.name] = float((answers.argmax(axis=1) == attacked.labels).mean())
        return metrics


def majority(task: Task, train_part: Examples, test_part: Examples) -> float:
    """The primary measure, on the test part, of always predicting the most frequent class of the train part;
    of a task with classes."""
    logits = np.zeros((len(test_part), len(task.labels())), np.float32)
    logits[:, np.bincount(train_part.labels).argmax()] = 1
    return task.evaluate(logits, test_part.labels)[task.measures[0].name]
