"""The screen that commands write on, and their exit code where they fail."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

EXIT_FAILED = 1
console = Console()


def say(line: str) -> None:
    """Print a line as it is, however long."""
    console.print(escape(line), soft_wrap=True, highlight=False)


def remark(text: str) -> None:
    """Print a remark that a user should see first."""
    if text:
        console.print(escape(text), style="yellow", soft_wrap=True)
