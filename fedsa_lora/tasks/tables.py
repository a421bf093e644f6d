"""Rows as files hold them: columns by name, typed only when a task asks for one, and where a row is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import cut, listing, nearest
from fedsa_lora.telemetry.journal import show_printable

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Part:
    """The rows of one file.

    ``read`` gives a column's n values as they are in the file. ``classes`` has the names of a column whose
    numbers stand for classes. ``lines`` (n,) is the line of a text file on which each row begins; ``files``
    (n,) are the files of rows that have one each.
    ``empty`` counts the rows without any value, which are left out. ``notes`` are remarks on how the file
    was read. ``lengths`` are those of the columns, where a file may hold columns of several.
    """

    name: str
    columns: Sequence[str]
    length: int
    read: Callable[[str], pa.ChunkedArray]
    classes: dict[str, list[str]] = field(default_factory=dict)
    lines: Sequence[int] | None = None
    files: Sequence[str] | None = None
    empty: int = 0
    notes: tuple[str, ...] = ()
    lengths: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: datasets.Dataset, name: str) -> Part:
        """A data set of Hugging Face as if it were a file."""

        def read(column: str) -> pa.ChunkedArray:
            return rows.select_columns([column]).with_format("arrow")[:][column]

        return cls(name, rows.column_names, len(rows), read, class_names(rows.features))

    def check(self, name: str) -> None:
        """Raise DataError where there is no such column, or more than one."""
        if name not in self.columns:
            first = " (the names of columns are the first line of a CSV or TSV file)"
            hint = first if self.name.lower().endswith((".csv", ".tsv")) else ""
            raise DataError(
                f"{self.name} has no column {name!r}{nearest(name, self.columns)}: there are "
                f"{names(self.columns)}; name the right one in the task{hint}",
                sent="the data lack a column that the run names",
            )
        if Counter(self.columns)[name] > 1:
            raise DataError(
                f"{self.name} has more than one column {name!r}: rename or remove the others",
                sent="the data have a column twice that the run names",
            )

    def select(self, columns: Sequence[str]) -> Part:
        """The rows of these columns. Raises DataError where one is not there, or is of another length."""
        for name in columns:
            self.check(name)
        lengths = [self.lengths.get(name, self.length) for name in columns]
        for name, length in zip(columns, lengths, strict=True):
            if length != lengths[0]:
                raise DataError(
                    f"{self.name}: {columns[0]!r} has {lengths[0]} rows and {name!r} has {length}: expected "
                    "as many in every array that the task names",
                    sent="the arrays of a data file have different lengths",
                )
        return replace(self, length=lengths[0]) if lengths else self

    def column(self, name: str) -> pa.ChunkedArray:
        """The values of a column. Raises DataError where there is no such column, or more than one."""
        self.check(name)
        values = self.read(name)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_binary_view(values.type):
            return values.cast(pa.large_binary())
        return values.cast(pa.large_string()) if pa.types.is_string_view(values.type) else values

    def place(self, row: int) -> str:
        """The file and, of a text file, the line of a row, which is counted from 0."""
        if self.files is not None:
            return self.files[row]
        return self.name if self.lines is None else f"{self.name}, line {self.lines[row]}"


@dataclass(frozen=True)
class Table:
    """The rows of one split: those of its files, one after the other. ``name`` is for messages."""

    name: str
    parts: Sequence[Part]

    def __len__(self) -> int:
        return sum(part.length for part in self.parts)

    def select(self, columns: Sequence[str]) -> Table:
        """The rows of these columns. Raises DataError where a file lacks one, or they are of different
        lengths."""
        return Table(self.name, [part.select(columns) for part in self.parts])

    @property
    def column_names(self) -> list[str]:
        """The columns of the first file, in its order."""
        return list(self.parts[0].columns)

    @property
    def empty(self) -> int:
        """Rows without any value, which are left out."""
        return sum(part.empty for part in self.parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on how the files were read."""
        return tuple(note for part in self.parts for note in part.notes)

    def column(self, name: str) -> pa.ChunkedArray:
        """The n values of a column. Raises DataError where a file lacks it or holds another type."""
        read = [part.column(name) for part in self.parts]
        first = self.class_names(name)
        for part in self.parts:
            if part.classes.get(name) != first:
                raise DataError(
                    f"{part.name}, column {name!r}: other class names than in {self.parts[0].name}",
                    sent="the files of a split have different class names",
                )
        try:
            tables = [pa.table({name: values}) for values in read]
            return pa.concat_tables(tables, promote_options="permissive")[name]
        except pa.ArrowException:
            kinds = dict.fromkeys(str(values.type) for values in read)
            raise DataError(
                f"{self.name}, column {name!r}: its files hold {listing(kinds)}; write all of them alike",
                sent="the files of a split hold values of different kinds in a column",
            ) from None

    def class_names(self, name: str) -> list[str] | None:
        """Names of the classes that the numbers of a column stand for, in order, where the files say so."""
        return self.parts[0].classes.get(name)

    def place(self, row: int) -> tuple[str, int]:
        """Place of a row, counted from 0: its file with the line, and its number in the file, from 1."""
        for part in self.parts:
            if row < part.length:
                return part.place(row), row + 1
            row -= part.length
        raise IndexError(row)


def library() -> Any:
    """The library ``datasets``, loaded when rows are first read; what it logs of them is made printable."""
    import datasets

    show_printable("datasets")
    return datasets


def class_names(features: datasets.Features) -> dict[str, list[str]]:
    """The names of every column whose numbers stand for classes."""
    kind = library().ClassLabel
    return {name: list(feature.names) for name, feature in features.items() if isinstance(feature, kind)}


def names(columns: Iterable[str]) -> str:
    """Names of columns or classes for a message, however many and long they are."""
    return listing(cut(name) for name in columns)
