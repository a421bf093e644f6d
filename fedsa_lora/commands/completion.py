"""Completion of commands in a shell: of their names and flags, of groups, options, keys and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedsa_lora.commands.arguments import commands_of
from fedsa_lora.errors import ConfigError

if TYPE_CHECKING:
    from fedsa_lora.commands.arguments import Commands

ASKED = "_ARGCOMPLETE"  # the variable by which a shell asks for completions
SHELLS = ("bash", "zsh", "fish")


def add(commands: Commands) -> None:
    """Add the command of this family."""
    completion = commands.add_parser(
        "completion", help='for your shell: eval "$(fedsa-lora completion bash)"'
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(call=_completion)


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell that asks, and end the process."""
    from argcomplete import autocomplete

    for command in commands_of(parser).values():
        for argument in command._actions:
            if argument.dest in _COMPLETED:
                argument.completer = _COMPLETED[argument.dest]  # type: ignore[attr-defined]
    autocomplete(parser)


def _overrides(prefix: str, **about: object) -> Iterator[str]:
    """Options of a group whose name stands there, or else groups, keys of their files, and config files."""
    from argcomplete.completers import FilesCompleter

    from fedsa_lora.config.options import Options, content_of, defaults, groups

    known, (group, sign, _) = Options.here(), prefix.partition("=")
    if sign:
        yield from (f"{group}={name}" for name in (known.of(group) if group in groups() else ()))
        return
    for group, default in defaults().items():
        yield f"{group}="
        if default is not None:
            yield from (f"{group}.{key}=" for key in content_of(known.of(group)[default]) if key[0] != "_")
    yield from FilesCompleter(("yaml", "yml"))(prefix)


def _groups(**about: object) -> list[str]:
    from fedsa_lora.config.options import groups

    return groups()


def _grids(**about: object) -> list[str]:
    from fedsa_lora.config.options import Options

    return list(Options.here().of("compare"))


_COMPLETED = {"overrides": _overrides, "group": _groups, "grid": _grids}


def _completion(options: argparse.Namespace) -> int:
    try:
        from argcomplete import shellcode
    except ImportError:
        raise ConfigError(
            "completion needs the package argcomplete: pip install 'fedsa-lora[completion]'"
        ) from None
    print(shellcode(["fedsa-lora"], shell=options.shell))
    return 0
