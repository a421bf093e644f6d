"""From a table with the user's column names to checked inputs, class ids and groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import cut, nearest
from fedsa_lora.tasks.remarks import on_classes, rewritten
from fedsa_lora.tasks.tables import Table, names
from fedsa_lora.tasks.values import Words, are_whole, is_fraction, whole, word_of, words_of


class Inputs(Protocol):
    """The inputs of n rows, not encoded yet, as a task reads them: columns of a ``datasets.Dataset``, or
    images."""

    def select(self, indices: NDArray[np.int64]) -> Inputs:
        """The inputs at some positions."""
        ...

    def __getitem__(self, rows: slice) -> Mapping[str, Any]:
        """Lists of values by column, by which it is seen whether the rows changed."""
        ...


@dataclass(frozen=True)
class Rows:
    """The labelled rows of one split.

    ``inputs`` has n rows and only the columns that a task encodes; ``labels`` is (n,) int64;
    ``groups`` is (n,), the value of the natural column, or None. ``left_out`` counts what was read beside
    them, by the reason; ``notes`` are remarks that a user should see.
    """

    inputs: Inputs
    labels: NDArray[np.int64]
    groups: NDArray[Any] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class LabelledData:
    """Train rows, test rows where there is an official test split, and the class names."""

    classes: tuple[str, ...]
    train: Rows
    test: Rows | None = None


@dataclass(frozen=True)
class Columns:
    """Columns of a table to read; ``inputs`` maps a task's input names to columns. Without a
    ``label`` there are no classes."""

    inputs: Mapping[str, str]
    label: str | None
    group: str | None = None
    where: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Kept:
    """The rows (n,) of a table that pass the filter, by their positions in it."""

    table: Table
    rows: NDArray[np.int64]

    def column(self, name: str) -> pa.ChunkedArray:
        return self.table.column(name).take(pa.array(self.rows))

    def words(self, name: str) -> Words:
        values = self.column(name)
        if pa.types.is_nested(values.type) or isinstance(values.type, pa.FixedShapeTensorType):
            found = "pixels" if isinstance(values.type, pa.FixedShapeTensorType) else cut(values.type)
            raise DataError(
                f"{self.table.name}, column {name!r}: expected one value per row, found {found}; name a "
                "column of words or numbers",
                sent="a column holds lists or objects where one value per row is expected",
            )
        return words_of(values)

    def at(self, row: int, column: str) -> tuple[str, int]:
        """The place of a kept row and of a column in words, and the row's number in its file."""
        place, number = self.table.place(int(self.rows[row]))
        return f"{place}, column {column!r}", number

    def refuse(
        self,
        faulty: NDArray[np.int64],
        column: str,
        fault: str,
        remedy: str = "fill it in or remove the row",
        *,
        sent: str,
        key: str = "",
    ) -> None:
        """Raise DataError for the faulty rows, if there are any."""
        if len(faulty):
            place, number = self.at(int(faulty[0]), column)
            more = f" (and {len(faulty) - 1} more)" if len(faulty) > 1 else ""
            text = f"{place}: row {number}{more} {fault}; {remedy}"
            raise DataError(text, sent=sent, key=key, rows=len(faulty))


def read_rows(
    table: Table,
    columns: Columns,
    classes: Sequence[str],
    read: Callable[[Kept, Mapping[str, str]], Inputs],
) -> Rows:
    """The rows that pass ``columns.where``, with labels as positions in ``classes``, all 0 without a
    label column. ``read`` takes the inputs from their columns.

    Raises DataError for a missing column, an empty text, a missing or an unknown label or group; rows are
    counted from 1, in the order of their file.
    """
    kept = _filtered(table, columns)
    inputs = read(kept, columns.inputs)
    labels, groups = np.zeros(len(kept.rows), dtype=np.int64), None
    notes = list(table.notes)
    if columns.label is not None:
        found = _labels(kept, columns.label)
        labels = _positions(kept, columns.label, found, classes)
        notes += [*rewritten(table, columns.label, found), *on_classes(table, labels, classes)]
    if columns.group is not None:
        found = kept.words(columns.group)
        kept.refuse(
            found.rows(lambda word: not word),
            columns.group,
            "has no value",
            sent="rows have no group",
            key="task.group",
        )
        groups = _groups(found)
        notes += rewritten(table, columns.group, found)
    left_out = {"without any value": table.empty, "by task.where": len(kept.table) - len(kept.rows)}
    return Rows(
        inputs,
        labels,
        groups,
        {reason: count for reason, count in left_out.items() if count},
        tuple(notes),
    )


def infer_classes(table: Table, columns: Columns) -> tuple[str, ...]:
    """The classes among the rows that pass ``columns.where``: sorted, whole numbers as such, or in the order
    of the names that the file has for them. Raises DataError for fractions."""
    if columns.label is None:
        return ()
    kept = _filtered(table, columns)
    found = _labels(kept, columns.label)
    present = set(found.words)
    fractions = found.rows(is_fraction)
    if found.numbers and len(fractions):
        place, number = kept.at(int(fractions[0]), columns.label)
        word = found.words[found.codes[fractions[0]]]
        raise DataError(
            f"{place}: row {number} has the label {cut(word)}, which is not a whole number; round it, "
            "or list all classes in task.class_names",
            sent="a label is a fraction",
            key="task.label",
        )
    if given := table.class_names(columns.label):
        return tuple(label for label in given if label in present)
    if are_whole(present):
        return tuple(sorted(present, key=lambda label: (int(label), label)))
    return tuple(sorted(present))


def _filtered(table: Table, columns: Columns) -> Kept:
    """The rows that pass the filter. Raises DataError for a column that is missing or of another length."""
    named = [*columns.inputs.values(), columns.label, columns.group, *(columns.where or {})]
    table = table.select([column for column in named if column is not None])
    everything = Kept(table, np.arange(len(table)))
    keep = np.ones(len(table), dtype=bool)
    for column, wanted in (columns.where or {}).items():
        keep &= _equals(everything.words(column), wanted, f"{table.name}, column {column!r}")
    if not keep.any():
        raise DataError(
            f"{table.name} has no rows" + (f" where {dict(columns.where)}" if columns.where else ""),
            sent="no row passes the filter, or there is none",
            key="task.where",
        )
    return Kept(table, np.flatnonzero(keep))


def _equals(found: Words, wanted: Any, name: str) -> NDArray[np.bool_]:
    """The rows (n,) that hold one of the wanted values; true and false in any spelling."""
    keep = np.zeros(len(found.codes), dtype=bool)
    for value in wanted if isinstance(wanted, list | tuple) else [wanted]:
        word = whole(word_of(value))
        present = [whole(each) for each in found.words]
        if isinstance(value, bool):
            word, present = word.casefold(), [each.casefold() for each in present]
        alike = [each == word for each in present]
        if not any(alike):
            there = sorted(set(found.words) - {""})
            raise DataError(
                f"{name}: no row equals {cut(word)!r}{nearest(word, there[:1000])}; values are "
                f"{names(there)}",
                sent="no row has a value that the run filters by",
                key="task.where",
            )
        keep |= np.array(alike)[found.codes]
    return keep


def _labels(kept: Kept, column: str) -> Words:
    """The class names of the rows, where the file has names for its numbers by these."""
    found = kept.words(column)
    kept.refuse(
        found.rows(lambda word: not word), column, "has no label", sent="rows have no label", key="task.label"
    )
    if other := next((value for value in found.raw if not isinstance(value, str | int | float)), None):
        raise DataError(
            f"{kept.table.name}, column {column!r}: expected words or whole numbers as labels, found "
            f"{type(other).__name__}, {cut(other)!r}; write them as words",
            sent="labels are neither words nor whole numbers",
            key="task.label",
        )
    given = kept.table.class_names(column)
    if given is None:
        return found
    kept.refuse(
        found.rows(lambda word: word.startswith("-")),
        column,
        "is unlabelled (-1)",
        sent="rows have no label",
        key="task.label",
    )
    called = {str(number): label for number, label in enumerate(given)}
    if beyond := next((word for word in found.words if word not in called), None):
        kept.refuse(
            found.rows(lambda word: word == beyond),
            column,
            f"has the label {cut(beyond)!r}, but its names are for 0 to {len(given) - 1} only",
            "correct it, write the labels as words, or remove the row",
            sent="rows have a label that the file has no name for",
            key="task.label",
        )
    return Words(found.raw, [called[word] for word in found.words], found.codes)


def _positions(kept: Kept, column: str, found: Words, classes: Sequence[str]) -> NDArray[np.int64]:
    names_given = [word_of(label) for label in classes]
    if found.numbers:
        names_given = [whole(label) for label in names_given]
    if found.truth_values:
        names_given = [label.capitalize() for label in names_given]
    position = {label: index for index, label in enumerate(names_given)}
    if position.keys().isdisjoint(found.words) and all(label.isdecimal() for label in found.words):
        # Labels are numbers and the given names say what they stand for.
        position = {str(index): index for index in range(len(classes))}
    unknown = found.rows(lambda label: label not in position)
    if len(unknown):
        place, number = kept.at(int(unknown[0]), column)
        label = found.words[found.codes[unknown[0]]]
        raise DataError(
            f"{place}, row {number}: unknown label {cut(label)!r}{nearest(label, classes)}; the classes are "
            f"{names(classes)}. Correct the row, or list every class in class_names.",
            sent="rows have a label that is none of the classes of the run",
            key="task.class_names",
            rows=len(unknown),
        )
    return np.array([position[label] for label in found.words], dtype=np.int64)[found.codes]


def _groups(found: Words) -> NDArray[Any]:
    """The groups (n,), as numbers where all of them are written as such."""
    if are_whole(found.words) and all(word == str(int(word)) for word in found.words):
        return np.array([int(word) for word in found.words])[found.codes]
    return np.array(found.words, dtype=object)[found.codes]
