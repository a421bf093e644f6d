"""Examples of a user's own: map-style data sets of torch and of ``datasets``, and loaders of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from fedsa_lora.errors import DataError
from fedsa_lora.tasks.task import Batch

LABELS = ("labels", "label")


@dataclass(frozen=True)
class Source:
    """A data set with an item for each example, and the function that makes a batch of items."""

    items: Any
    collate: Callable[[list[Any]], Any] = default_collate

    @classmethod
    def of(cls, given: Any) -> Source:
        """Of a data set, or of a DataLoader, whose data set and collate function are taken. Raises DataError
        for what has no length or no items."""
        if isinstance(given, DataLoader):
            return cls(given.dataset, given.collate_fn or default_collate)
        if not hasattr(given, "__getitem__") or not hasattr(given, "__len__"):
            raise DataError(
                f"{type(given).__name__} is not a data set with a length and items: expected a map-style "
                "Dataset, or a DataLoader of one",
                sent="the data function does not return a data set",
            )
        return cls(given)

    def __len__(self) -> int:
        return len(self.items)

    def labels(self) -> NDArray[np.int64]:
        """The class of each item (n,); -1 where it has none that is a whole number."""
        return np.array([_class(label) for label in _labels(self.items)], dtype=np.int64)


def named(batch: Any) -> Batch:
    """The tensors of a batch by name. One that is a tuple has its last part as ``labels``, and those before
    as "0", "1" and so on, which a model takes by position; a ``label`` is called ``labels``. Raises DataError
    for any other."""
    if isinstance(batch, Mapping):
        return {("labels" if name == "label" else str(name)): value for name, value in batch.items()}
    if isinstance(batch, list | tuple) and len(batch) > 1:
        *inputs, labels = batch
        return {**{str(place): value for place, value in enumerate(inputs)}, "labels": labels}
    raise DataError(
        f"a batch is a {type(batch).__name__}: expected a mapping of names to tensors, or a tuple of inputs "
        "and labels",
        sent="batches of the data are neither mappings nor tuples",
    )


def outputs_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The model's output for a batch without its labels: a tensor, or the ``logits`` of one of
    transformers."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    by_position = [inputs.pop(name) for name in list(inputs) if name.isdigit()]
    output = model(*by_position, **inputs)
    found: torch.Tensor = getattr(output, "logits", output)
    return found


def _labels(items: Any) -> Sequence[Any]:
    """The label of each item, without a look at what else an item has where that is not needed."""
    if isinstance(items, TensorDataset):
        return items.tensors[-1].tolist()
    if isinstance(items, Subset):
        known = _labels(items.dataset)
        return [known[index] for index in items.indices]
    for name in LABELS:
        if name in getattr(items, "column_names", ()):
            return list(items.with_format(None)[name])
    return [_label(items[row]) for row in range(len(items))]


def _label(item: Any) -> Any:
    if isinstance(item, Mapping):
        return next((item[name] for name in LABELS if name in item), None)
    return item[-1]


def _class(label: Any) -> int:
    if isinstance(label, torch.Tensor | np.generic) and label.ndim == 0:
        label = label.item()
    return label if isinstance(label, int) else -1
