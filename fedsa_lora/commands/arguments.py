"""Arguments that commands of several families take."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def commands_of(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The parser of each command, by its name."""
    return next(
        action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )


def add_changed_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-changed-data", action="store_true", help="although the data have changed since the run"
    )


def add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--json", action="store_true", help="one JSON object on stdout, all else on stderr (docs/commands.md)"
    )


def add_overrides(command: argparse.ArgumentParser, of_these: str) -> None:
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="FILE.yaml | KEY=VALUE",
        help=f"a whole config, such as runs/NAME/config.yaml, and Hydra overrides: {of_these}",
    )


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected at least 1")
    return number
