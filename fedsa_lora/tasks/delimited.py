"""CSV and TSV files: the separator, quotation marks that may be text, and lines of too many or few fields.

Every field is read as text, so that 007 stays 007 and an unused column of mixed types refuses nothing.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import cut
from fedsa_lora.tasks.tables import Part

if TYPE_CHECKING:
    import _csv

SEPARATORS = {",": "a comma", "\t": "a tab", ";": "';'", "|": "'|'"}


@dataclass
class _Sheet:
    """The fields of a file: ``rows`` (n, columns), and the lines (n,) on which they begin."""

    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    empty: int = 0
    spanning: list[int] = field(default_factory=list)  # the lines on which rows of several lines begin


def read_delimited(text: str, name: str, usual: str) -> Part:
    """The rows of a file whose fields are separated by the ``usual`` sign, or by another if its header is.

    Raises DataError that names the line of a fault.
    """
    separator = _separator(text, usual)
    notes = () if separator == usual else (f"{name}: its fields are separated by {SEPARATORS[separator]}",)
    sheet, remark = _decide(text, name, separator)
    if not sheet.header:
        raise DataError(
            f"{name} is empty: expected a line with the names of the columns, and rows",
            sent="a data file has no header",
        )
    columns = [column.strip() for column in sheet.header]

    def read(column: str) -> pa.ChunkedArray:
        position = columns.index(column)
        return pa.chunked_array([pa.array([row[position] for row in sheet.rows], pa.string())])

    return Part(
        name, columns, len(sheet.rows), read, lines=sheet.lines, empty=sheet.empty, notes=(*notes, *remark)
    )


def _separator(text: str, usual: str) -> str:
    """The usual separator if the header has it, else that which cuts the header into most columns."""
    for line in io.StringIO(text, newline=""):
        if line.strip():
            found = {sign: line.count(sign) for sign in SEPARATORS}
            return usual if found[usual] else max(found, key=lambda sign: (found[sign], sign == usual))
    return usual


def _decide(text: str, name: str, separator: str) -> tuple[_Sheet, tuple[str, ...]]:
    """The rows with quotation marks read as such, or as a part of the text.

    Files as of GLUE have no quoting: a lone mark there would swallow the lines up to the next one. So marks
    are text where each line is a separate row, and read otherwise they make no sense, or (in TSV, where
    a text hardly ever holds a tab and a new line) swallow a line. A row that goes over several lines is
    always remarked: a lone mark may have made it.
    """
    if '"' not in text:
        return _read(text, name, separator, quoting=False), ()
    try:
        quoted = _read(text, name, separator, quoting=True)
    except DataError:
        plain = _each_line_a_row(text, name, separator)
        if plain is None:
            raise
        return plain, (f"{name}: quotation marks are read as text, because not all that open are closed",)
    if not quoted.spanning:
        return quoted, ()
    plain = _each_line_a_row(text, name, separator)
    first = quoted.spanning[0]
    if plain is not None and separator == "\t":
        swallowed = f"{name}: line {first} opens a quotation mark that a later line closes"
        return plain, (f"{swallowed}; quotation marks are read as text, each line as a row",)
    count = "1 row goes" if len(quoted.spanning) == 1 else f"{len(quoted.spanning):,} rows go"
    otherwise = "" if plain is None else f" ({len(quoted.rows)} rows, not {len(plain.rows)})"
    return quoted, (
        f"{name}: {count} over several lines, the first from line {first} on: what is between two quotation "
        f"marks is read as one text{otherwise}",
    )


def _each_line_a_row(text: str, name: str, separator: str) -> _Sheet | None:
    """The rows where marks are text; None where lines then differ in their fields, or where the header or
    most rows have a field between marks, so that they are quoted."""
    try:
        sheet = _read(text, name, separator, quoting=False)
    except DataError:
        return None
    quoted = sum(any(map(_between_marks, row)) for row in sheet.rows)
    if len(sheet.header) < 2 or any(map(_between_marks, sheet.header)) or 2 * quoted > len(sheet.rows):
        return None
    return sheet


def _between_marks(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"'


def _read(text: str, name: str, separator: str, quoting: bool) -> _Sheet:
    csv.field_size_limit(sys.maxsize)  # a text may be longer than the 128 KiB of the default
    lines = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=True,
    )
    sheet = _Sheet()
    for line, last, fields in _records(lines, name):
        if not any(map(str.strip, fields)):
            sheet.empty += len(fields) > 1  # a spreadsheet's empty row; a blank line is none
        elif not sheet.header:
            sheet.header = fields
        elif len(fields) != len(sheet.header):
            raise DataError(
                f"{name}, line {line}: {len(fields)} fields, but the header has {len(sheet.header)}; put a "
                "text that holds the separator between quotation marks, or add what is missing. "
                f"The line begins {cut(separator.join(fields))!r}",
                sent="a line of a data file has more or fewer fields than the header",
            )
        else:
            sheet.rows.append(fields)
            sheet.lines.append(line)
            if last > line:
                sheet.spanning.append(line)
    return sheet


def _records(lines: _csv.Reader, name: str) -> Iterator[tuple[int, int, list[str]]]:
    """The first and the last line of each record, and its fields."""
    first = 1
    try:
        for fields in lines:
            yield first, lines.line_num, fields
            first = lines.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {first}: a quotation mark opens a field there and is not closed before the next "
            f'separator ({error}); write a mark within a quoted field twice (""), or remove it',
            sent="a quotation mark in a data file is not closed",
        ) from None
