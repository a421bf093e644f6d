"""JSON files: an object per line, or a list of objects; each is a row."""

from __future__ import annotations

import io
import json
import re
import sys
from typing import Any

import pyarrow as pa

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import cut
from fedsa_lora.tasks.tables import Part, names

REMEDY = "write one object per row, as pandas does with to_json(path, orient='records', lines=True)"
_HALF = re.compile("[\ud800-\udfff]")  # of a character that JSON writes as two, such as \\ud83d\\ude00
_HALVED = (
    "half of a character (\\ud800 to \\udfff), which is not text; write the whole character, or remove it"
)


def read_records(text: str, name: str) -> Part:
    """The rows of a JSON Lines file or of a list of objects. Raises DataError that names the line."""
    if text.lstrip().startswith("["):
        rows, lines = _listed(text, name), None
    else:
        rows, lines = _by_line(text, name)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            place = f"row {number + 1}" if lines is None else f"line {lines[number]}"
            raise DataError(
                f"{name}, {place}: {cut(row)!r} is not an object with columns; {REMEDY}",
                sent="a row of a data file is not a JSON object",
            )
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if half := next(filter(_HALF.search, columns), None):
        raise DataError(
            f"{name}: the column {cut(half)!r} has {_HALVED}", sent="a column's name is broken Unicode"
        )
    if len(rows) == 1 and rows[0] and all(isinstance(value, dict | list) for value in rows[0].values()):
        raise DataError(
            f"{name} holds one object with whole columns ({names(rows[0])}), not rows; {REMEDY}",
            sent="a data file holds whole columns as JSON, not rows",
        )

    def read(column: str) -> pa.ChunkedArray:
        return _typed([row.get(column) for row in rows], part, column)

    part = Part(name, columns, len(rows), read, lines=lines)
    return part


def _by_line(text: str, name: str) -> tuple[list[Any], list[int]]:
    rows, lines = [], []
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip():
            continue
        try:
            rows.append(_loaded(line, f"{name}, line {number}"))
        except json.JSONDecodeError as error:
            if not rows and (whole := _whole(text, name)):
                return [whole], [number]
            raise DataError(
                f"{name}, line {number}: not JSON ({error.msg} at character {error.colno}); {REMEDY}. "
                f"The line begins {cut(line.strip())!r}",
                sent="a line of a data file is not JSON",
            ) from None
        lines.append(number)
    return rows, lines


def _whole(text: str, name: str) -> Any:
    """The one object that a text holds over several lines, or None."""
    try:
        return _loaded(text, name)
    except json.JSONDecodeError:
        return None


def _listed(text: str, name: str) -> list[Any]:
    try:
        rows: list[Any] = _loaded(text, name)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name}, line {error.lineno}: not JSON ({error.msg} at character {error.colno}); {REMEDY}",
            sent="a data file is not JSON",
        ) from None
    return rows


def _loaded(text: str, place: str) -> Any:
    """The value of a JSON text. Raises DataError for sound JSON that Python does not read, and
    JSONDecodeError for what is none."""
    try:
        return json.loads(text)
    except RecursionError:
        fault = "lists or objects that are nested too deeply; take out what no column needs"
    except json.JSONDecodeError:
        raise
    except ValueError:
        fault = f"a number of more than {sys.get_int_max_str_digits()} digits; write it as text"
    raise DataError(f"{place}: {fault}", sent="a data file holds JSON that is not a table")


def _typed(values: list[Any], part: Part, column: str) -> pa.ChunkedArray:
    try:
        return pa.chunked_array([pa.array(values)])
    except UnicodeEncodeError:
        half = next(
            number
            for number, value in enumerate(values)
            if _HALF.search(json.dumps(value, ensure_ascii=False))
        )
        raise DataError(
            f"{part.place(half)}, column {column!r}: row {half + 1} has {_HALVED}. It holds "
            f"{cut(values[half])!r}",
            sent="a value of a data file is broken Unicode",
        ) from None
    except (pa.ArrowException, OverflowError) as error:
        kinds = [_kind(value) for value in values]
        first = next(row for row, kind in enumerate(kinds) if kind)
        row = next((row for row, kind in enumerate(kinds) if kind not in ("", kinds[first])), None)
        if row is None:
            reason = cut(error, 300)
            raise DataError(
                f"{part.name}, column {column!r}: {kinds[first]} in a form that is not read ({reason}); "
                "write it as text",
                sent="a column of a data file has values in a form that is not read",
            ) from None
        raise DataError(
            f"{part.place(row)}, column {column!r}: row {row + 1} holds {kinds[row]}, "
            f"{cut(values[row])!r}, and row {first + 1} {kinds[first]}; write all alike",
            sent="a column of a data file holds values of several kinds",
        ) from None


def _kind(value: Any) -> str:
    """The type of a value in the words of JSON; nothing of a missing one."""
    if value is None:
        return ""
    kinds = {bool: "true or false", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")
