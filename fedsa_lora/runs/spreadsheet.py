"""Rows as CSV, which spreadsheets open: what they would compute stays a text."""

from __future__ import annotations

import csv
import io
from typing import Any

from fedsa_lora.errors import printable


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV, with every column that one of them has. A text is printable and on one line; one that a
    spreadsheet would compute gets an apostrophe in front, which makes it a text there."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_inert, columns))
    writer.writerows([_inert(row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def _inert(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
