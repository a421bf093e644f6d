"""Tasks whose rows are in files or on the hub: the common part of texts and images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.suggest import listing, nearest
from fedsa_lora.tasks.classification import ClassificationTask
from fedsa_lora.tasks.divided import DividedTask
from fedsa_lora.tasks.rows import Columns, Inputs, Kept, LabelledData, Rows, infer_classes, read_rows
from fedsa_lora.tasks.sources import find_split, has_splits, on_unread_split, read_split
from fedsa_lora.tasks.values import word_of


@dataclass(frozen=True, kw_only=True)
class SourcedTask(DividedTask):
    """Rows from a shipped set, local files or the hub.

    ``dataset`` is the name of a shipped set, a file, a folder or a hub id (with ``subset``);
    ``files`` may name one file per split instead; neither is needed where every node has its own data.
    ``group`` (the natural column) is a column's name; ``where`` keeps the rows whose column equals a value
    or one of a list. Without a ``test_split`` every client sets part of its rows aside.
    ``train_split`` and ``test_split`` are names of splits, as the data set has them.
    """

    dataset: str = ""
    files: dict[str, str] = field(default_factory=dict)
    subset: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    group: str | None = None
    where: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.dataset) == bool(self.files) and not (self.partition.own and not self.dataset):
            raise ConfigError(
                f"dataset is {self.dataset!r} and files is {dict(self.files)}: give exactly one of them"
            )

    @property
    def source(self) -> str:
        """The data set, or the files."""
        return self.dataset or ", ".join(self.files.values())

    @property
    @abstractmethod
    def columns(self) -> Columns:
        """Columns to read."""

    @abstractmethod
    def inputs(self, kept: Kept, columns: Mapping[str, str]) -> Inputs:
        """The inputs of the rows that are kept, from their columns by the inputs' names."""

    @property
    def given_classes(self) -> Sequence[str] | None:
        """The classes in their order, where they are not to be found in the train rows."""
        return None

    def at(self, path: Path) -> Self:
        """The same task on other data: a file, which has no test split, or a folder with a file per split."""
        test = self.test_split if has_splits(path) else None
        return replace(self, dataset=str(path), files={}, subset=None, test_split=test)

    def places(self) -> list[Path]:
        """The files and folders of both splits; none of the hub, nor where every node has its own data.
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
        train = read_rows(table, columns, classes, self.inputs)
        if given is None and len(classes) == 1:
            raise DataError(
                f"{table.name}, column {columns.label!r}: every row has the label {classes[0]}; "
                "expected at least two classes: name another column, or list all in task.class_names"
                f"{''.join(f'. {note}' for note in table.notes)}",
                sent="all rows have the same label",
                key="task.label",
            )
        if self.test_split is None:
            unread = on_unread_split(source, self.train_split, self.subset)
            return LabelledData(classes, replace(train, notes=(*train.notes, *unread)))
        table = read_split(source, self.test_split, self.subset)
        return LabelledData(classes, train, read_rows(table, columns, classes, self.inputs))


@dataclass(frozen=True, kw_only=True)
class LabelledTask(SourcedTask, ClassificationTask):
    """Rows with a class each.

    ``label`` is a column's name. ``class_names`` fixes the classes and their order, otherwise they are those
    of the train rows, sorted. ``classes`` keeps the rows of these classes alone, by name or by number, and
    the model's outputs are in their order.
    """

    label: str = "label"
    class_names: list[str] | None = None
    classes: list[str | int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.partition.own and not self.class_names:
            raise ConfigError(
                "every node has its own data, so the classes must be fixed: expected class_names=[...]",
                sent="the classes must be fixed where every node has its own data",
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

    def labels(self) -> tuple[str, ...]:
        """Class names; with ``class_names`` given no data are read, so a server needs none."""
        if not self.class_names:
            return super().labels()
        if not self.classes:
            return tuple(self.class_names)
        return tuple(self.class_names[place] for place in positions(self.classes, self.class_names))

    @property
    def given_classes(self) -> Sequence[str] | None:
        return self.class_names or None

    def read(self) -> LabelledData:
        """The rows of both splits, of the chosen ``classes``."""
        return self.of_classes(super().read())

    def of_classes(self, data: LabelledData) -> LabelledData:
        """The rows of the chosen classes, with the labels that these have then. Raises DataError for a class
        that is not there."""
        if not self.classes:
            return data
        chosen = positions(self.classes, data.classes)
        # the place of each class among the chosen
        places = np.full(len(data.classes), -1, dtype=np.int64)
        places[chosen] = np.arange(len(chosen))
        test = None if data.test is None else _relabelled(data.test, places)
        return LabelledData(tuple(data.classes[c] for c in chosen), _relabelled(data.train, places), test)


def positions(wanted: Sequence[str | int], classes: Sequence[str]) -> list[int]:
    """The positions of classes that are given by name, or else by number. Raises DataError for one that is
    not there or is given twice, and for fewer than two."""
    found = []
    for each in wanted:
        word = word_of(each)
        if word in classes:
            found.append(classes.index(word))
        elif word.isdecimal() and int(word) < len(classes):
            found.append(int(word))
        else:
            raise DataError(
                f"task.classes: no class {word!r}{nearest(word, classes)}; expected names of, or numbers "
                f"from 0 to {len(classes) - 1} for, {listing(classes)}",
                sent="the data lack a class that the run asks for",
                key="task.classes",
            )
    if len(set(found)) < max(2, len(found)):
        raise DataError(
            f"task.classes is {list(wanted)}: expected at least two classes, each of them once",
            sent="the run asks for a class twice, or for a single one",
            key="task.classes",
        )
    return found


def _relabelled(rows: Rows, places: NDArray[np.int64]) -> Rows:
    """The rows with the labels ``places`` (classes,), without those of which that is -1."""
    labels = places[rows.labels]
    kept = np.flatnonzero(labels >= 0)
    left_out = {**rows.left_out, "by task.classes": len(rows) - len(kept)}
    return Rows(
        rows.inputs.select(kept),
        labels[kept],
        None if rows.groups is None else rows.groups[kept],
        {reason: count for reason, count in left_out.items() if count},
        rows.notes,
    )
