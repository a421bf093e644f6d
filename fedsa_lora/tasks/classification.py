"""The common part of classification tasks: classes, what clients call them, and metrics of logits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, DataError
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

    builds_head: ClassVar[bool] = True
    classifies: ClassVar[bool] = True
    measures: ClassVar[tuple[Measure, ...]] = CLASSES

    def triggered(self, inputs: datasets.Dataset) -> datasets.Dataset:
        """The same inputs with the trigger of an attack in each. Raises ConfigError where there is none."""
        raise ConfigError(f"attack: {type(self).__name__} has no trigger; expected attack=none")

    def describe(self) -> FederationData:
        """Counts each client's examples, and names those who poison them. Raises ConfigError for an attack
        that cannot be."""
        found = super().describe()
        if self.attack is None:
            return found
        self.attack.check(found.clients, len(found.labels))
        note = (
            f"attack: {self.attack.share:.0%} of the train examples of clients {sorted(self.attack.clients)} "
            f"carry a trigger and are labelled class {self.attack.target}"
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
        train, attacked = data.train, self._marked(client, tested, held.test[other], self.attack.target)
        if chosen.any():
            clean = self._examples(client, self.data.train, held.train[~chosen])
            bad = self._marked(client, self.data.train, held.train[chosen], self.attack.target)
            train = Examples.joined([clean, bad])
        return replace(data, train=train, attacked=attacked)

    def _marked(self, client: str, rows: Rows, indices: NDArray[np.int64], target: int) -> Examples:
        inputs = self.triggered(self._inputs(client, rows, indices))
        return self.encode(inputs, np.full(len(indices), target, dtype=np.int64))

    def client_labels(self, client: str) -> tuple[str, ...]:
        """Class names in the order of this client's outputs, which ``label_meaning`` may permute."""
        labels = self.labels()
        return tuple(labels[i] for i in np.argsort(self._renamed(client, np.arange(len(labels)))))

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Logits (batch, classes): the model's output, or the ``logits`` of one of transformers."""
        output = model(**{k: v for k, v in batch.items() if k != "labels"})
        logits: torch.Tensor = getattr(output, "logits", output)
        return logits

    def evaluate(self, predictions: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """Accuracy, macro F1, Matthews correlation and cross-entropy from logits (n, classes) and labels
        (n,)."""
        return of_classes(predictions, labels, len(self.labels()))

    @cached_property
    def _permutations(self) -> list[NDArray[np.int64]]:
        return label_permutations(len(self.labels()), self.partition.clients, self.seed)

    def _renamed(self, client: str, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.partition.label_meaning == "common":
            return labels
        return self._permutations[int(client)][labels]


def of_classes(predictions: NDArray[np.float32], labels: NDArray[np.int64], classes: int) -> dict[str, float]:
    """Accuracy, macro F1, Matthews correlation and cross-entropy from logits (n, classes) and labels (n,).
    Raises DataError for other shapes."""
    if predictions.shape != (len(labels), classes) or not len(labels):
        raise DataError(
            f"predictions {predictions.shape} for labels {labels.shape}: expected one row per example, "
            f"at least one, and {classes} columns"
        )
    found = agreement(labels, predictions.argmax(axis=1), classes)
    return {**found, "loss": cross_entropy(predictions, labels)}


def agreement(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> dict[str, float]:
    """Accuracy, macro F1 and Matthews correlation of n predicted classes (n,), at least one, to the bit as
    scikit-learn computes them, without the milliseconds of its checks.

    Macro F1 is the mean over the classes that are among the labels or the predictions; the correlation is 0
    where either side has one class alone (Gorodkin, 2004).
    """
    right = labels == predicted
    hits = np.bincount(labels[right], minlength=classes)
    true = np.bincount(labels, minlength=classes).astype(np.float64)
    called = np.bincount(predicted, minlength=classes).astype(np.float64)
    there = true + called > 0
    f1 = 2 * hits[there] / (true + called)[there]
    total = float(len(labels))
    covariance = hits.sum() * total - true @ called
    variances = (total**2 - called @ called) * (total**2 - true @ true)
    return {
        "accuracy": float(right.mean()),
        "macro_f1": float(f1.mean()),
        "matthews": float(covariance / np.sqrt(variances)) if variances else 0.0,
    }


def cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean of -log softmax(logits)[label], in nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_softmax[np.arange(len(labels)), labels].mean())
