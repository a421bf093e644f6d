"""Commands on config files: list, new."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fedsa_lora.commands.screen import say
from fedsa_lora.errors import ConfigError, RunError

if TYPE_CHECKING:
    from fedsa_lora.commands.arguments import Commands

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")


def add(commands: Commands) -> None:
    """Add the commands of this family."""
    listed = commands.add_parser("list", help="list the config groups, or the options of one")
    listed.add_argument("group", nargs="?", help="such as split, task or experiment")
    listed.set_defaults(call=_list)
    new = commands.add_parser("new", help="write a commented experiment file for you to edit")
    new.add_argument("name", help="writes conf/experiment/NAME.yaml here, for experiment=NAME")
    new.set_defaults(call=_new)


def _list(options: argparse.Namespace) -> int:
    from fedsa_lora.binding import unknown
    from fedsa_lora.config.options import Options, about, defaults, groups

    known, chosen = Options.here(), defaults()
    if options.group is None:
        for group in groups():
            default = f" ({chosen[group]})" if chosen.get(group) else ""
            say(f"{group}{default}: {', '.join(known.of(group))}")
        return 0
    if options.group not in groups():
        raise ConfigError(unknown(options.group, "group", groups()))
    files = known.of(options.group)
    width = max(map(len, files), default=0)
    for name, path in files.items():
        say(f"{name:<{width}}  {about(path)}")
    return 0


def _new(options: argparse.Namespace) -> int:
    from fedsa_lora.config.options import NEW_EXPERIMENT, OWN, Options
    from fedsa_lora.files import write_atomically, writing

    name = options.name.removesuffix(".yaml")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r}: expected letters, digits, '.', '_' and '-', with '/' between the names of folders"
        )
    path = Path(OWN, "experiment", f"{name}.yaml")
    if (there := Options.here().of("experiment").get(name)) or path.exists():
        raise RunError(f"an experiment {name!r} exists in {there or path}: choose another name")
    text = NEW_EXPERIMENT.read_text(encoding="utf-8")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.replace("EXPERIMENT", name).replace("NAME", path.stem).encode())
    say(f"written: {path}; after your changes: fedsa-lora run experiment={name}")
    return 0
