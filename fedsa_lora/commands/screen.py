"""The screen that commands write on, their exit code where they fail, and their answer to programs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from numbers import Integral, Real
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape

EXIT_FAILED = 1
console = Console()


class Answer(NamedTuple):
    """The exit code of a command, and with ``--json`` the object that it prints."""

    code: int
    found: Mapping[str, Any]

    def as_json(self) -> str:
        """One line of JSON; a number that is none is null there."""
        return json.dumps(_plain(self.found), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


@contextmanager
def all_on_stderr() -> Iterator[None]:
    """Has this process and those that it starts write on stderr what they would on stdout."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def say(line: str) -> None:
    """Print a line as it is, however long."""
    console.print(escape(line), soft_wrap=True, highlight=False)


def remark(text: str) -> None:
    """Print a remark that a user should see first."""
    if text:
        console.print(escape(text), style="yellow", soft_wrap=True)
