"""Binds a resolved config to typed dataclasses, collecting every fault before anything runs."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from fedsa_lora.errors import ConfigError, FedSAError
from fedsa_lora.foreign import ours_within
from fedsa_lora.group import Group, Interval, Target, held, hints_of
from fedsa_lora.suggest import listing, nearest

T = TypeVar("T")
TARGET = "_target_"
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
PLUGINS = "FEDSA_LORA_PLUGINS"  # comma-separated packages and modules that a user allows besides ours


def unknown(place: object, kind: str, known: Sequence[str], name: object = None) -> str:
    """The fault of a name that is not known: where it stands, and the nearest valid name or all of them."""
    name = str(place).rsplit(".", 1)[-1] if name is None else name
    return f"{place}: no such {kind}{nearest(name, known) or f'; expected one of {listing(sorted(known))}'}"


def unknown_key(place: str, value: object, known: Sequence[str]) -> list[str]:
    """The faults of a key that is not known: with our words for those of other programs in it, if it has
    any."""
    return ours_within(place, value) or [unknown(place, "key", known)]


def bind(cls: type[T], node: Any, path: str, faults: list[str]) -> T | None:
    """An instance of a dataclass from a mapping, or None after adding to ``faults``."""
    if not isinstance(node, Mapping):
        faults.append(f"{path}: expected settings, got {node!r}")
        return None
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = hints_of(cls)  # type: ignore[arg-type]
    before = len(faults)
    for key, value in node.items():
        if key not in fields and key != TARGET:
            faults.extend(unknown_key(_join(path, key), value, list(fields)))
    values = {}
    for name, field in fields.items():
        if name in node:
            values[name] = value_of(hints[name], node[name], _join(path, name), faults)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            faults.append(f"{_join(path, name)}: missing")
    if issubclass(cls, Group):
        faults.extend(f"{path}: {fault}" for fault in cls.contradictions(node))
    if len(faults) > before:
        return None
    try:
        return cls(**values)
    except FedSAError as error:
        faults.append(f"{path}: {error}")
        return None


def bind_target(base: type[T], node: Any, path: str, allowed: tuple[str, ...], faults: list[str]) -> T | None:
    """An instance of the dataclass that ``_target_`` names, which must be a ``base``."""
    if (cls := resolve_target(node, path, allowed, faults)) is None:
        return None
    if not issubclass(cls, base):
        faults.append(f"{path}._target_: {cls.__name__} is not a {base.__name__}")
        return None
    return bind(cls, node, path, faults)


def resolve_target(node: Any, path: str, allowed: tuple[str, ...], faults: list[str]) -> type[Any] | None:
    """The class named by ``_target_``, if it is named by, and was defined in, an allowed package.

    ``allowed`` are dotted names that end with a dot. A config may come from another machine, so it must not
    name any class it likes, nor one that an allowed module merely imports. The environment variable
    FEDSA_LORA_PLUGINS adds packages and modules, on this machine only.
    """
    target = node.get(TARGET) if isinstance(node, Mapping) else None
    if not isinstance(target, str):
        faults.append(f"{path}: expected a _target_, the dotted name of a class")
        return None
    extra = plugins()
    if not target.startswith(allowed + extra):
        faults.append(
            f"{path}._target_: {target!r} is not allowed; expected {' or '.join(p + '*' for p in allowed)} "
            f"(add your own packages with the environment variable {PLUGINS})"
        )
        return None
    module, _, name = target.rpartition(".")
    try:
        place = importlib.import_module(module)
    except Exception as error:  # also what a plug-in raises where it is imported
        faults.append(
            f"{path}._target_={target}: no such class, as {module} cannot be imported "
            f"({type(error).__name__}: {error}); install it, or add its folder to PYTHONPATH"
        )
        return None
    if (found := getattr(place, name, None)) is None:
        faults.append(unknown(f"{path}._target_={target}", "class", _neighbours(module), name))
        return None
    if not inspect.isclass(found):
        faults.append(f"{path}._target_: {target!r} is not a class")
        return None
    if not f"{found.__module__}.".startswith(allowed + extra) or inspect.isabstract(found):
        faults.append(
            f"{path}._target_: {target!r} cannot be used; expected a concrete class that is defined there, "
            f"got {_misplaced(found)}"
        )
        return None
    return found


def _misplaced(found: type[Any]) -> str:
    """Reason why a class is not a concrete one of its module."""
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        return f"one without {listing(lacking)}"
    return f"one of {found.__module__}"


def plugins() -> tuple[str, ...]:
    """The packages and modules that this machine allows besides ours, as dotted names that end with a dot."""
    named = (name.strip().rstrip(".") for name in os.environ.get(PLUGINS, "").split(","))
    return tuple(f"{name}." for name in named if name)


def check_arguments(
    cls: type[Any], arguments: Mapping[str, Any], path: str, faults: list[str], known: Sequence[str] = ()
) -> None:
    """Add a fault for every argument that the class does not take, that has another type than it
    declares, or that it needs and that is neither given nor one of ``known``. Keys that it does not take may
    be those of the option file whose class another has replaced."""
    parameters, hints = _constructor(cls)
    for key, value in arguments.items():
        if isinstance(value, float) and not math.isfinite(value):
            faults.append(f"{_join(path, key)}: {value!r} is out of range; expected a finite number")
        elif key in hints:
            value_of(hints[key], value, _join(path, key), faults)
        elif key not in parameters and key != TARGET:
            place, names = _join(path, key), list(parameters)
            remedy = "" if nearest(key, names) else f"; leave it out by ~{place}, or give {path} as a whole"
            faults.append(f"{unknown(place, f'argument of {cls.__name__}', names)}{remedy}")
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind not in _VARIADIC
        if needed and name not in arguments and name not in known:
            faults.append(f"{_join(path, name)}: missing")


def arguments_of(cls: type[Any]) -> dict[str, Any]:
    """The names of the arguments that a class is made with, and the type of each (None: not declared)."""
    parameters, hints = _constructor(cls)
    return {name: hints.get(name) for name in parameters}


def _constructor(cls: type[Any]) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """Arguments that a class is made with; where it hands ``**arguments`` on, also what the class above it
    takes."""
    parameters, hints = dict(inspect.signature(cls).parameters), hints_of(cls.__init__)
    above = cls.__mro__[1]
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and above is not object:
        taken, known = _constructor(above)
        parameters, hints = taken | parameters, known | hints
    return parameters, hints


def raise_faults(faults: list[str], *, sent: str = "") -> None:
    """Raise one ConfigError that lists every fault; ``sent`` is what a client sends of it."""
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults)
        text = f"the configuration has {len(faults)} fault{'s'[: len(faults) > 1]}:\n{listed}"
        error = ConfigError(text, sent=sent)
        error.faults = tuple(faults)
        raise error


def attempt(look: Callable[[], T], faults: list[FedSAError]) -> T | None:
    """The result of a look, or None after adding its error to ``faults``."""
    try:
        return look()
    except FedSAError as error:
        faults.append(error)
        return None


def raise_errors(faults: list[FedSAError]) -> None:
    """Raise the one error as it is, of several a ConfigError that lists them."""
    if len(faults) == 1:
        raise faults[0]
    raise_faults([line for fault in faults for line in fault.faults])


def _neighbours(module: str) -> list[str]:
    try:
        return [n for n, v in vars(importlib.import_module(module)).items() if inspect.isclass(v)]
    except ImportError:
        return []


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def value_of(hint: Any, value: Any, path: str, faults: list[str]) -> Any:
    """A value as its type has it, or None after adding to ``faults``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _marked(arguments[0], arguments[1:], value, path, faults)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, path, faults)
    if origin is Literal:
        return _choice(arguments, value, path, faults)
    if origin in (list, tuple):
        return _items(origin, arguments, value, path, faults)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return bind(hint, value, path, faults)
    if origin is dict and isinstance(value, Mapping):
        return _mapping(arguments, value, path, faults)
    return _scalar(origin or hint, value, path, faults)


def _one_of(options: tuple[Any, ...], value: Any, path: str, faults: list[str]) -> Any:
    """A value as the first of several types that takes it."""
    if value is None and type(None) in options:
        return None
    refused: list[list[str]] = []  # the faults of each type
    for option in options:
        if option is type(None):
            continue
        found: list[str] = []
        bound = value_of(option, value, path, found)
        if not found:
            return bound
        refused.append(found)
    # of the right form, but for something in it: that is what was meant
    formed = [found for found in refused if not found[0].startswith(f"{path}:")]
    faults.extend(formed[0] if formed else refused[0])
    return None


def _choice(choices: tuple[Any, ...], value: Any, path: str, faults: list[str]) -> Any:
    if value not in choices:
        faults.append(unknown(f"{path}={value}", "choice", [str(choice) for choice in choices], value))
    return value


def _mapping(kinds: tuple[Any, ...], value: Mapping[Any, Any], path: str, faults: list[str]) -> Any:
    """A mapping with its values as their type has them; YAML reads a name such as 3 as a number."""
    key_kind, item_kind = kinds
    bound = {}
    for key, item in value.items():
        name = str(key) if key_kind is str else key
        bound[name] = value_of(item_kind, item, _join(path, name), faults)
    return bound


def _marked(hint: Any, marks: tuple[Any, ...], value: Any, path: str, faults: list[str]) -> Any:
    """A value whose type has marks: what is out of range or names no class to bind is a fault."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    for mark in marks:
        if isinstance(mark, Interval) and is_number and value not in mark:
            faults.append(f"{path}: {value!r} is out of range; expected {mark}")
            return None
        if isinstance(mark, Target) and (value is not None or type(None) not in get_args(hint)):
            return bind_target(held(hint), value, path, mark.allowed, faults)
    return value_of(hint, value, path, faults)


def _items(origin: Any, arguments: tuple[Any, ...], value: Any, path: str, faults: list[str]) -> Any:
    if not isinstance(value, list | tuple):
        faults.append(f"{path}: expected a list, got {value!r}")
        return None
    fixed = origin is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        faults.append(f"{path}: expected {len(arguments)} values, got {value!r}")
        return None
    kinds = arguments if fixed else [arguments[0]] * len(value)
    items = zip(kinds, value, strict=True)
    return origin(value_of(kind, v, f"{path}[{i}]", faults) for i, (kind, v) in enumerate(items))


def _scalar(kind: Any, value: Any, path: str, faults: list[str]) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        faults.append(f"{path}: expected {kind.__name__}, got {value!r}")
    return value
