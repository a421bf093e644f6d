"""A task: data, a model that is not in transformers, its loss, and its measure."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from fedsa_lora.exchange.measure import Measure
from fedsa_lora.tasks.classification import ClassificationTask
from fedsa_lora.tasks.rows import LabelledData, Rows
from fedsa_lora.tasks.task import Batch, Examples


class Network(nn.Module):
    """Two hidden layers; the layer called classifier is the head, which is trained whole."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.classifier = nn.Linear(width, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.body(pixels))
        return logits


@dataclass(frozen=True, kw_only=True)
class Digits(ClassificationTask):
    """Handwritten digits, measured by top-2 accuracy."""

    measures: ClassVar[tuple[Measure, ...]] = (Measure("top_two", (0.0, 1.0), format="percent"),)
    width: int = 32

    def read(self) -> LabelledData:
        found = load_digits()
        rows = Dataset.from_dict({"pixels": found.data / 16})
        return LabelledData(tuple("0123456789"), Rows(rows, found.target.astype(np.int64)))

    def encode(self, inputs: Dataset, labels: NDArray[np.int64]) -> Examples:
        pixels = np.array(inputs["pixels"], np.float32)
        return Examples({"pixels": pixels}, labels, np.ones(len(labels), np.int64))

    def collate(self, examples: Examples, indices: NDArray[np.int64]) -> Batch:
        chosen = examples.at(indices)
        return {"pixels": torch.tensor(chosen.features["pixels"]), "labels": torch.tensor(chosen.labels)}

    def build_model(self, *, seed: int, empty: bool = False) -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.device("meta" if empty else "cpu"):
            torch.manual_seed(seed)
            return Network(self.width)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(self.predict(model, batch), batch["labels"])

    def evaluate(self, predictions: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        likeliest = predictions.argsort(axis=1)[:, -2:]
        return {"top_two": float((likeliest == labels[:, None]).any(axis=1).mean())}
