"""The command line: ``fedsa-lora run | resume | watch | compare | advise | evaluate | export | report |
list | new | import | certificates | node | doctor | completion``."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console

from fedsa_lora import __version__
from fedsa_lora.commands import comparisons, completion, configs, imports, machines, results, runs
from fedsa_lora.commands.arguments import commands_of
from fedsa_lora.commands.screen import EXIT_FAILED, Answer, all_on_stderr
from fedsa_lora.errors import FedSAError, StoppedError
from fedsa_lora.foreign import ours_of_flags
from fedsa_lora.stopping import INTERRUPTED
from fedsa_lora.suggest import nearest

DESCRIPTION = "Federated LoRA fine-tuning with Flower. Start with: fedsa-lora run --dry-run"


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    main_parser = argparse.ArgumentParser(prog="fedsa-lora", description=DESCRIPTION)
    main_parser.set_defaults(json=False)
    main_parser.add_argument("--version", action="version", version=f"fedsa-lora {__version__}")
    commands = main_parser.add_subparsers(dest="command", required=True)
    for family in (runs, results, comparisons, configs, imports, machines, completion):
        family.add(commands)
    return main_parser


def parsed(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options of a command, and what it does not know. Overrides may stand between its flags: argparse,
    which cannot mix them in a command of several, leaves those behind a flag over."""
    given = sys.argv[1:] if arguments is None else arguments
    main_parser = parser()
    if given and given[0][:1] != "-" and given[0] not in (known := commands_of(main_parser)):
        main_parser.error(f"no command {given[0]!r}{nearest(given[0], known)}; expected {', '.join(known)}")
    options, beyond = main_parser.parse_known_args(given)
    if "overrides" in options:
        options.overrides = [*options.overrides, *(word for word in beyond if word[:1] != "-")]
        beyond = [word for word in beyond if word[:1] == "-"]
    return options, beyond


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only when what was asked for was done."""
    if completion.ASKED in os.environ:
        completion.complete(parser())
    options, beyond = parsed(arguments)
    if beyond and options.command != "node":
        _refuse(options.command, beyond, sys.argv[1:] if arguments is None else arguments)
    options.beyond = beyond
    gc.set_threshold(10_000)  # what trains is half a million objects that stay: not looked at again and again
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    if not options.json:
        return answer(options).code
    with all_on_stderr():
        found = answer(options)
    print(found.as_json())
    return found.code


def _refuse(command: str, beyond: Sequence[str], given: Sequence[str]) -> NoReturn:
    """Exit with the flags that a command does not know: each with ours, or with the nearest that it has."""
    of_command = commands_of(parser())[command]
    known = [flag for action in of_command._actions for flag in action.option_strings]
    names = [flag.partition("=")[0] for flag in beyond if flag.startswith("--")]
    close = [f"{name}{hint}" for name in names if (hint := nearest(name, known))]
    hints = list(ours_of_flags(given, beyond)) or close
    of_command.error("\n  ".join([f"unrecognized arguments: {' '.join(beyond)}", *hints]))


def answer(options: argparse.Namespace) -> Answer:
    """Do what was asked for; an error is reported on stderr, and is the answer."""
    try:
        found: int | Answer = options.call(options)
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        return _failed(stop.code, stop)
    except FedSAError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        print(error, file=sys.stderr)
        return _failed(EXIT_FAILED, error)
    except KeyboardInterrupt as error:
        print("interrupted; all processes that were started have been stopped", file=sys.stderr)
        return _failed(INTERRUPTED, error)
    return found if isinstance(found, Answer) else Answer(found, {})


def _failed(code: int, error: BaseException) -> Answer:
    return Answer(code, {"error": type(error).__name__, "reason": str(error)})


if __name__ == "__main__":
    sys.exit(main())
