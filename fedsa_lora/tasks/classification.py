"""What every classification task shares: classes, what clients call them, and metrics of logits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from fedsa_lora.errors import DataError
from fedsa_lora.tasks.divided import DividedTask
from fedsa_lora.tasks.partition import label_permutations
from fedsa_lora.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(DividedTask):
    """Implements ``Task`` over ``read``, ``encode`` and ``collate``."""

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
