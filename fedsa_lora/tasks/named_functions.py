"""Functions that a config names as ``MODULE:FUNCTION``, as it names classes by ``_target_``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from fedsa_lora.binding import PLUGINS, plugins
from fedsa_lora.errors import ConfigError

_GIVEN: dict[str, Callable[..., Any]] = {}  # by code of this process, which may name what it likes
_PARTITION = "a function of (partition, partitions)"
_EXPECTED = {  # by the arguments of an app
    "model": "a function or class without arguments",
    "data": _PARTITION,
    "trainer": _PARTITION,
    "loss": "a function of (model, batch)",
    "evaluate": "a function of (outputs, labels)",
}


def check_function(argument: str, given: Any) -> None:
    """Raise ConfigError where what an app is given as an argument is no function or class with a name."""
    if hasattr(given, "__qualname__"):
        name_of(given)
        return
    kind = type(given).__name__
    remedy = f"; pass {kind}" if argument == "model" and isinstance(given, nn.Module) else ""
    raise ConfigError(f"{argument}: expected {_EXPECTED[argument]}, got an instance of {kind}{remedy}")


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function, by which this process finds it again, and another one where its module can be
    imported. Raises ConfigError for one that has no such name."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or not name or "<" in name:
        raise ConfigError(
            f"{function!r} has no name by which other processes find it: expected a function that is defined "
            "at the top of a module"
        )
    _GIVEN[f"{module}:{name}"] = function
    return f"{module}:{name}"


def imported(name: str, called: str) -> tuple[str, str]:
    """A line of Python that imports the function of a name, and an expression: the function, and how it is
    ``called``."""
    module, _, function = name.partition(":")
    return f"from {module} import {function.partition('.')[0]}", f"{function}{called}"


def is_name(text: str) -> bool:
    """True for ``MODULE:FUNCTION``."""
    module, _, name = text.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def function_of(name: str) -> Callable[..., Any]:
    """The function of a name. Raises ConfigError where this process was not given it, and its module is none
    of those that FEDSA_LORA_PLUGINS allows, or has no such function."""
    if name in _GIVEN:
        return _GIVEN[name]
    module, _, path = name.partition(":")
    if not f"{module}.".startswith(plugins()):
        raise ConfigError(
            f"the function {name!r} is not allowed here: name its package in the environment variable "
            f"{PLUGINS}",
            sent="the run names a function that this machine does not allow",
        )
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # also what the module raises where it is imported
        raise ConfigError(
            f"the function {name!r} cannot be found ({type(error).__name__}: {error}); install its "
            f"package, or add its folder to PYTHONPATH",
            sent="a function of the run cannot be found here",
        ) from error
    if not callable(found):
        raise ConfigError(
            f"{name!r} is not a function", sent="the run names something that is not a function"
        )
    return found
