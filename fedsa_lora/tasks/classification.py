"""The common part of classification tasks: classes, what clients call them, and metrics of logits."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import DataError
from fedsa_lora.exchange.measure import CLASSES, Measure
from fedsa_lora.tasks.backdoor import Backdoor
from fedsa_lora.tasks.divided import DividedTask
from fedsa_lora.tasks.partition import label_permutations
from fedsa_lora.tasks.rows import Rows
from fedsa_lora.tasks.task import Batch, ClientData, Examples, FederationData

if TYPE_CHECKING:
    import datasets
    import torch


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(DividedTask):
    """Implements ``Task`` over ``read``, ``encode``, ``collate`` and, for clients that poison their data,
    ``triggered``."""

    attack: Backdoor | None = None

    classifies: ClassVar[bool] = True  # predictions are logits of classes
    measures: ClassVar[tuple[Measure, ...]] = CLASSES

    @abstractmethod
    def triggered(self, inputs: datasets.Dataset) -> datasets.Dataset:
        """The same inputs with the trigger of an attack in each."""

    def describe(self) -> FederationData:
        """Counts each client's examples, and names those who poison them. Raises ConfigError for an attack
        that cannot be."""
        found = super().describe()
        if self.attack is None:
            return found
        self.attack.check(found.clients, len(found.labels))
        note = (
            f"attack: {self.attack.share:.0%} of the train examples of clients {sorted(self.attack.clients)} "
            f"bear a trigger and are called class {self.attack.target}"
        )
        return replace(found, notes=(*found.notes, note))

    def load_client(self, client: str) -> ClientData:
        """The encoded parts of one client, poisoned where it attacks. Raises DataError for an unknown one."""
        data = super().load_client(client)
        if self.attack is None:
            return data
        held, tested = self._rows(client), self.data.test or self.data.train
        chosen = self.attack.chosen(self.seed, client, held.train)
        other = self._renamed(client, tested.labels[held.test]) != self.attack.target
        train, attacked = data.train, self._marked(tested, held.test[other], self.attack.target)
        if chosen.any():
            clean = self._examples(client, self.data.train, held.train[~chosen])
            bad = self._marked(self.data.train, held.train[chosen], self.attack.target)
            train = Examples.joined([clean, bad])
        return replace(data, train=train, attacked=attacked)

    def _marked(self, rows: Rows, indices: NDArray[np.int64], target: int) -> Examples:
        inputs = self.triggered(rows.inputs.select(indices))
        return self.encode(inputs, np.full(len(indices), target, dtype=np.int64))

    def client_labels(self, client: str) -> tuple[str, ...]:
        """Class names in the order of this client's outputs, which ``label_meaning`` may permute."""
        labels = self.labels()
        return tuple(labels[i] for i in np.argsort(self._renamed(client, np.arange(len(labels)))))

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Logits (batch, classes)."""
        logits: torch.Tensor = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        return logits

    def evaluate(self, predictions: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """Accuracy, macro F1, Matthews correlation and cross-entropy from logits (n, classes) and labels
        (n,)."""
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        if predictions.shape != (len(labels), len(self.labels())) or not len(labels):
            raise DataError(
                f"predictions {predictions.shape} for labels {labels.shape}: expected one row per example, "
                f"at least one, and {len(self.labels())} columns"
            )
        predicted = predictions.argmax(axis=1)
        return {
            "accuracy": float(accuracy_score(labels, predicted)),
            "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
            "matthews": float(matthews_corrcoef(labels, predicted)),
            "loss": cross_entropy(predictions, labels),
        }

    @cached_property
    def _permutations(self) -> list[NDArray[np.int64]]:
        return label_permutations(len(self.labels()), self.partition.clients, self.seed)

    def _renamed(self, client: str, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.partition.label_meaning == "common":
            return labels
        return self._permutations[int(client)][labels]


def cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean of -log softmax(logits)[label], in nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_softmax[np.arange(len(labels)), labels].mean())
