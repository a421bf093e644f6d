"""The settings of a run as its `config.yaml` has them, key by key."""

from __future__ import annotations

from typing import Any

from yaml import YAMLError, safe_dump  # type: ignore[import-untyped]

from fedsa_lora.binding import TARGET
from fedsa_lora.config import yaml_text

PLACES = ("run.", "machine.")  # where a run is made, which does not change what it is
TITLES = ("name", "title", "description", "experiment")


def settings_of(config: str) -> dict[str, Any]:
    """The settings of a config as it was written; nothing of one that was cut off."""
    try:
        settings = yaml_text.parse(config)
    except YAMLError:
        return {}
    return settings if isinstance(settings, dict) else {}


def section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings of a group; nothing of one that is not there."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


_ALLOWED = ("fedsa_lora", "strategies", "flwr", "flwr_datasets")  # without being named by the user


def own_packages(node: Any, key: str = "") -> set[str]:
    """The packages of the user's own code that a config names: by ``_target_``, or as the function
    ``MODULE:FUNCTION`` of a task."""
    if isinstance(node, dict):
        return set[str]().union(*(own_packages(value, str(name)) for name, value in node.items()))
    if isinstance(node, list):
        return set[str]().union(*(own_packages(value) for value in node))
    if not isinstance(node, str) or not (key == TARGET or key.endswith("_function")):
        return set()
    package = node.partition(":")[0].partition(".")[0]
    return {package} if package.isidentifier() and package not in _ALLOWED else set()


def differences(one: str, other: str) -> list[tuple[str, str, str]]:
    """The settings in which two configs differ: key, value in the first and in the second, empty where one
    has no such key. Places, titles and the experiment's name are left out."""
    first, second = (_flat(settings_of(config)) for config in (one, other))
    keys = [key for key in {**first, **second} if key not in TITLES and not key.startswith(PLACES)]
    return [
        (key, first.get(key, ""), second.get(key, "")) for key in keys if first.get(key) != second.get(key)
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = _written(value)
    return found


def _written(value: Any) -> str:
    """A value as the file has it, on one line."""
    return str(safe_dump(value, default_flow_style=True, width=10**6)).removesuffix("\n...\n").strip()
