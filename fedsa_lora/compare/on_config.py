"""The methods of a grid on a config of the user's own."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from fedsa_lora.compare.grid import SET, YOURS, Grid
from fedsa_lora.config.changes import named
from fedsa_lora.config.from_file import overrides_of
from fedsa_lora.errors import ConfigError


def on_config(grid: Grid, words: Sequence[str]) -> Grid:
    """The grid with one regime, made of a command's config file and overrides, in the place of all its
    regimes and of what goes with them. Groups and keys that some method sets are those of the methods. Raises
    ConfigError, also for an override of what a grid sets in each of its runs."""
    if given := [word for word in words if named(word) in SET]:
        raise ConfigError(
            f"{given[0]}: a grid sets {named(given[0])} in each of its runs; leave it out, or save a grid "
            f"with your own rates and seeds (docs/compare.md)"
        )
    chosen = {named(word) for line in grid.methods.values() for word in shlex.split(line)}
    keys = [key for key in chosen if "." in key]
    regime = shlex.join(overrides_of(words, without=keys, reset=chosen))
    return replace(grid, regimes={YOURS: regime}, words="", fixed={}, further={}, quick=None)
