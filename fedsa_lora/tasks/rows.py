"""From a table with the user's column names to checked inputs, class ids and groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import listing, nearest


@dataclass(frozen=True)
class Rows:
    """The labelled rows of one split.

    ``inputs`` has n rows and only the columns that a task encodes; ``labels`` is (n,) int64;
    ``groups`` is (n,), the value of the natural column, or None.
    """

    inputs: datasets.Dataset
    labels: NDArray[np.int64]
    groups: NDArray[Any] | None = None

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
    """Which columns of a table are read; ``inputs`` maps a task's input names to columns. Without a
    ``label`` there are no classes."""

    inputs: Mapping[str, str]
    label: str | None
    group: str | None = None
    where: Mapping[str, Any] | None = None


def read_rows(table: datasets.Dataset, columns: Columns, classes: Sequence[str], *, name: str) -> Rows:
    """The rows that pass ``columns.where``, with labels as positions in ``classes``, all 0 without a
    label column.

    Raises DataError for a missing column, an empty text, a missing or an unknown label; rows are
    counted from 1, in the order of the file that ``name`` stands for.
    """
    arrow, kept = _filtered(table, columns, name)
    for column in columns.inputs.values():
        _check_texts(arrow[column], kept, f"{name}, column {column!r}")
    labels = np.zeros(len(kept), dtype=np.int64)
    if columns.label is not None:
        where = f"{name}, column {columns.label!r}"
        names = _label_names(arrow[columns.label], table.features[columns.label], kept, where)
        labels = _positions(names, classes, kept, where)
    groups = None
    if columns.group is not None:
        _refuse(pc.is_null(arrow[columns.group]), kept, f"{name}, column {columns.group!r}", "has no value")
        groups = arrow[columns.group].to_numpy()
    inputs = table.select(kept).select_columns(list(columns.inputs.values()))
    return Rows(inputs.rename_columns({old: new for new, old in columns.inputs.items()}), labels, groups)


def infer_classes(table: datasets.Dataset, columns: Columns, *, name: str) -> tuple[str, ...]:
    """The classes among the rows that pass ``columns.where``: sorted, or in a ClassLabel's own order."""
    if columns.label is None:
        return ()
    arrow, kept = _filtered(table, columns, name)
    feature = table.features[columns.label]
    names = _label_names(arrow[columns.label], feature, kept, f"{name}, column {columns.label!r}")
    present = {str(value) for value in pc.unique(names).to_pylist()}
    if isinstance(feature, datasets.ClassLabel):
        return tuple(label for label in feature.names if label in present)
    integer = pa.types.is_integer(arrow[columns.label].type)
    return tuple(sorted(present, key=(lambda label: (int(label), label)) if integer else None))


def _filtered(table: datasets.Dataset, columns: Columns, name: str) -> tuple[pa.Table, NDArray[np.int64]]:
    """The rows that pass the filter, and their positions in the whole table."""
    where = columns.where or {}
    named = [column for column in (columns.label, columns.group) if column is not None]
    for column in [*columns.inputs.values(), *named, *where]:
        if column not in table.column_names:
            raise DataError(
                f"{name} has no column {column!r}{nearest(column, table.column_names)}: there are "
                f"{listing(table.column_names)}; name the right one in the task"
            )
    arrow = table.with_format("arrow")[:]
    keep = np.ones(len(arrow), dtype=bool)
    for column, wanted in where.items():
        keep &= _equals(arrow[column], wanted, f"{name}, column {column!r}")
    kept = np.flatnonzero(keep)
    if not len(kept):
        raise DataError(f"{name} has no rows" + (f" where {dict(where)}" if where else ""))
    return arrow.take(kept), kept


def _equals(column: pa.ChunkedArray, wanted: Any, name: str) -> NDArray[np.bool_]:
    text = pc.cast(column, pa.large_string())
    values = [str(value) for value in (wanted if isinstance(wanted, list | tuple) else [wanted])]
    present = sorted(str(value) for value in pc.unique(text).to_pylist())
    for value in values:
        if value not in present:
            raise DataError(
                f"{name}: no row equals {value!r}{nearest(value, present)}; values are {listing(present)}"
            )
    mask: NDArray[np.bool_] = pc.is_in(text, pa.array(values, pa.large_string())).to_numpy()
    return mask


def _check_texts(column: pa.ChunkedArray, kept: NDArray[np.int64], name: str) -> None:
    if not _is_text(column.type):
        raise DataError(f"{name}: expected text, found {column.type}; name a column of strings")
    _refuse(pc.is_null(column), kept, name, "has no text")
    _refuse(pc.equal(pc.utf8_trim_whitespace(column), ""), kept, name, "has an empty text")


def _label_names(
    column: pa.ChunkedArray, feature: Any, kept: NDArray[np.int64], name: str
) -> pa.ChunkedArray:
    """Labels as strings, one per row."""
    _refuse(pc.is_null(column), kept, name, "has no label")
    if isinstance(feature, datasets.ClassLabel):
        _refuse(pc.less(column, 0), kept, name, "is unlabelled (-1)")
        return pc.take(pa.array(feature.names, pa.large_string()), column)
    if not (_is_text(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        raise DataError(f"{name}: labels must be strings or whole numbers, found {column.type}")
    names = pc.cast(column, pa.large_string())
    _refuse(pc.equal(names, ""), kept, name, "has no label")
    return names


def _positions(
    names: pa.ChunkedArray, classes: Sequence[str], kept: NDArray[np.int64], name: str
) -> NDArray[np.int64]:
    encoded = pc.dictionary_encode(names).combine_chunks()
    present = encoded.dictionary.to_pylist()
    position = {label: index for index, label in enumerate(classes)}
    if position.keys().isdisjoint(present) and all(label.isdecimal() for label in present):
        # Labels are numbers and the given names say what they stand for.
        position = {str(index): index for index in range(len(classes))}
    codes: NDArray[np.int64] = encoded.indices.to_numpy().astype(np.int64)
    for code, label in enumerate(present):
        if label not in position:
            row = kept[np.flatnonzero(codes == code)[0]] + 1
            raise DataError(
                f"{name}, row {row}: unknown label {label!r}{nearest(label, classes)}; the classes are "
                f"{listing(classes)}. Correct the row, or list every class in class_names."
            )
    return np.array([position[label] for label in present], dtype=np.int64)[codes]


def _refuse(faulty: pa.ChunkedArray, kept: NDArray[np.int64], name: str, fault: str) -> None:
    rows = kept[np.flatnonzero(faulty.to_numpy())] + 1
    if len(rows):
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        raise DataError(f"{name}: row {rows[0]}{more} {fault}; fill it in or remove the row")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
