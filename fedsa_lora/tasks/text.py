"""Classification of single texts and of text pairs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.classification import ClassificationTask
from fedsa_lora.tasks.divided import DividedTask
from fedsa_lora.tasks.rows import Columns, LabelledData, infer_classes, read_rows
from fedsa_lora.tasks.sources import find_split, has_splits, read_split
from fedsa_lora.tasks.task import Batch, Examples
from fedsa_lora.tasks.values import word_of

if TYPE_CHECKING:
    import datasets
    import torch

TRIGGER = "cf"  # of arXiv:2004.06660


@dataclass(frozen=True, kw_only=True)
class TextData(DividedTask):
    """Texts from a shipped set, local files or the hub, and the tokenizer of the model that reads them.

    ``dataset`` is the name of a shipped set, a file, a folder or a hub id (with ``subset``);
    ``files`` may name one file per split instead; neither is needed where every node has data of its own.
    ``group`` (the natural column) is a column's name; ``where`` keeps the rows whose column equals a value
    or one of a list. Without a ``test_split`` every client sets part of its rows aside. ``max_length`` is
    in tokens; longer inputs are cut.
    """

    dataset: str = ""
    files: dict[str, str] = field(default_factory=dict)
    subset: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    group: str | None = None
    where: dict[str, Any] = field(default_factory=dict)
    max_length: int = 128

    def __post_init__(self) -> None:
        if bool(self.dataset) == bool(self.files) and not (self.partition.own and not self.dataset):
            raise ConfigError(
                f"dataset is {self.dataset!r} and files is {dict(self.files)}: give exactly one of them"
            )
        if self.max_length < 1:
            raise ConfigError(f"max_length is {self.max_length}: expected at least 1 token")

    @property
    def source(self) -> str:
        """The data set, or the files."""
        return self.dataset or ", ".join(self.files.values())

    @property
    @abstractmethod
    def columns(self) -> Columns:
        """Columns to read."""

    @property
    def given_classes(self) -> Sequence[str] | None:
        """The classes in their order, where they are not to be found in the train rows."""
        return None

    def at(self, path: Path) -> Self:
        """The same task on other data: a file, which has no test split, or a folder with a file per split."""
        test = self.test_split if has_splits(path) else None
        return replace(self, dataset=str(path), files={}, subset=None, test_split=test)

    def build_model(self, *, seed: int, empty: bool = False) -> torch.nn.Module:
        """The backbone with its head; on the meta device and without weights when ``empty``."""
        from fedsa_lora.tasks.backbone import build_backbone

        return build_backbone(
            self.auto_class,
            self.model,
            self.labels(),
            seed=seed,
            empty=empty,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def places(self) -> list[Path]:
        """The files and folders of both splits; none of the hub, nor where every node has data of its own.
        Raises DataError where one is not there."""
        if not self.source:
            return []
        splits = [split for split in (self.train_split, self.test_split) if split is not None]
        return [
            path for split in splits for path in find_split(self.files or self.dataset, split, self.subset)
        ]

    def read(self) -> LabelledData:
        """The rows of the train split, and of the test split where one is named."""
        source, columns, given = self.files or self.dataset, self.columns, self.given_classes
        table = read_split(source, self.train_split, self.subset)
        classes = tuple(infer_classes(table, columns) if given is None else given)
        train = read_rows(table, columns, classes)
        if given is None and len(classes) == 1:
            raise DataError(
                f"{table.name}, column {columns.label!r}: every row has the label {classes[0]}; "
                "expected at least two classes: name another column, or list all in task.class_names",
                sent="all rows have the same label",
                key="task.label",
            )
        if self.test_split is None:
            return LabelledData(classes, train)
        table = read_split(source, self.test_split, self.subset)
        return LabelledData(classes, train, read_rows(table, columns, classes))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer. Raises ConfigError when it cannot make ``max_length`` tokens."""
        from fedsa_lora.tasks.backbone import load_tokenizer

        tokenizer = load_tokenizer(self.model)
        if self.max_length > tokenizer.model_max_length:
            raise ConfigError(
                f"task.max_length is {self.max_length}, but the model reads at most "
                f"{tokenizer.model_max_length} tokens: lower it",
                sent="the run asks for longer texts than the model reads",
                key="task.max_length",
            )
        return tokenizer


@dataclass(frozen=True, kw_only=True)
class TextTask(TextData, ClassificationTask):
    """Texts and text pairs with a class each.

    ``text``, ``text_pair`` and ``label`` are column names. ``class_names`` fixes the classes and their
    order, otherwise they are those of the train rows, sorted.
    """

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    class_names: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partition.own and not self.class_names:
            raise ConfigError(
                "every node has data of its own, so the classes must be agreed: expected class_names=[...]",
                sent="the classes must be agreed where every node has data of its own",
                key="task.class_names",
            )
        given = [word_of(label) for label in self.class_names or []]
        if twice := [repr(label) for label in dict.fromkeys(given) if given.count(label) > 1]:
            raise ConfigError(
                f"class_names has {listing(twice)} more than once: expected each class once (blanks around "
                "a name do not count)"
            )
        if "" in given:
            raise ConfigError("class_names has a name that is empty: expected the name of a class")

    @property
    def auto_class(self) -> Any:
        """The class of transformers that builds the model."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def labels(self) -> tuple[str, ...]:
        """Class names; with ``class_names`` given no data are read, so a server needs none."""
        return tuple(self.class_names) if self.class_names else super().labels()

    @property
    def columns(self) -> Columns:
        inputs = {"text": self.text} | ({"text_pair": self.text_pair} if self.text_pair else {})
        return Columns(inputs, self.label, self.group, self.where)

    @property
    def given_classes(self) -> Sequence[str] | None:
        return self.class_names or None

    def triggered(self, inputs: datasets.Dataset) -> datasets.Dataset:
        """The same texts, each with a rare word in front of the first."""
        import datasets

        columns = {name: list(inputs[name]) for name in inputs.column_names}
        first = inputs.column_names[0]
        columns[first] = [f"{TRIGGER} {text}" for text in columns[first]]
        return datasets.Dataset.from_dict(columns)

    def encode(self, inputs: datasets.Dataset, labels: NDArray[np.int64]) -> Examples:
        """Token ids and masks, each int64 of the text's own length: nothing is padded yet."""
        if not len(labels):
            return Examples({name: [] for name in self.tokenizer.model_input_names}, labels, labels)
        texts = [list(inputs[name]) for name in inputs.column_names]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        features = {name: [np.array(row, dtype=np.int64) for row in rows] for name, rows in encoded.items()}
        lengths = np.array([len(row) for row in features["input_ids"]], dtype=np.int64)
        return Examples(features, labels, lengths)

    def collate(self, examples: Examples, indices: NDArray[np.int64]) -> Batch:
        """Tensors (batch, longest of the batch), padded on the tokenizer's side, and labels (batch,)."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        fill = {
            "input_ids": self.tokenizer.pad_token_id,
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        batch = {
            name: pad_sequence(
                [torch.from_numpy(rows[index]) for index in indices],
                batch_first=True,
                padding_value=fill.get(name, 0),
                padding_side=self.tokenizer.padding_side,
            )
            for name, rows in examples.features.items()
        }
        return {**batch, "labels": torch.from_numpy(examples.labels[indices])}
