"""Classification of images: scikit-learn's handwritten digits, which come with the library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.tasks.classification import ClassificationTask
from fedsa_lora.tasks.rows import LabelledData, Rows
from fedsa_lora.tasks.task import Batch, Examples

if TYPE_CHECKING:
    import datasets

_SIDE, _LEVELS = 8, 16


@dataclass(frozen=True, kw_only=True)
class ImageTask(ClassificationTask):
    """1,797 grey images of 8 x 8 pixels in ten classes, without an official test split."""

    @property
    def auto_class(self) -> Any:
        """The class of transformers that builds the model."""
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification

    def read(self) -> LabelledData:
        """All digits as train rows; pixels are 64 values from 0 to 16."""
        import datasets
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = datasets.Dataset.from_dict({"pixels": digits.data.astype(np.float32).tolist()})
        classes = tuple(str(name) for name in digits.target_names)
        return LabelledData(classes, Rows(pixels, digits.target.astype(np.int64)))

    def triggered(self, inputs: datasets.Dataset) -> datasets.Dataset:
        """The same images, the four pixels of the lower right corner at their brightest."""
        import datasets

        pixels = np.array(inputs["pixels"][:], dtype=np.float32).reshape(-1, _SIDE, _SIDE)
        pixels[:, -2:, -2:] = _LEVELS
        return datasets.Dataset.from_dict({"pixels": pixels.reshape(-1, _SIDE * _SIDE).tolist()})

    def encode(self, inputs: datasets.Dataset, labels: NDArray[np.int64]) -> Examples:
        """``pixel_values``, one float32 (1, 8, 8) in [-1, 1] per example."""
        pixels = np.array(inputs["pixels"][:], dtype=np.float32).reshape(-1, 1, _SIDE, _SIDE)
        return Examples({"pixel_values": list(pixels / (_LEVELS / 2) - 1)}, labels, np.ones_like(labels))

    def collate(self, examples: Examples, indices: NDArray[np.int64]) -> Batch:
        """``pixel_values`` (batch, 1, 8, 8) and labels (batch,)."""
        import torch

        pixels = np.stack([examples.features["pixel_values"][index] for index in indices])
        return {
            "pixel_values": torch.from_numpy(pixels),
            "labels": torch.from_numpy(examples.labels[indices]),
        }
