"""The changes that a command makes of an experiment, and a title for a run of no experiment."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONNECTION = tuple(f"federation.{key}" for key in ("superlink", "root_certificates", "insecure", "registry"))
# What decides where, with which seed and under which name a run is made, but not what it is.
_PLAIN = ("experiment", "seed", "title", "name", "description", *CONNECTION)
_PLACES = ("run.", "machine.")
OWN_SETTING = {"experiment", "regime", "task", "task.dataset", "task.files"}  # instead of the quickstart

OWN_MODEL = {"functions": "model_function", "trainer": "trainer_function"}  # what a title names them by


def named(word: str) -> str:
    """The key of an override: ``+model.config.x=1`` -> ``model.config.x``."""
    return word.partition("=")[0].lstrip("+~")


def with_experiment(words: Sequence[str]) -> list[str]:
    """The quickstart, where neither an experiment nor data or a regime of the user's are named: those come
    with plain settings, not with the quickstart's artificial ones."""
    chosen = {named(word) for word in words}
    return list(words) if chosen & OWN_SETTING else ["experiment=quickstart", *words]


def changes(words: Sequence[str]) -> dict[str, str]:
    """Value by key of the overrides that change what a run is; of a key that stands twice, the last."""
    found: dict[str, str] = {}
    for word in words:
        key, value = named(word), word.partition("=")[2]
        if key not in _PLAIN and not key.startswith(_PLACES):
            found.pop(key, None)
            found[key] = "removed" if word.startswith("~") else value.strip("\"'")
    return found


def changes_of(command: str) -> dict[str, str]:
    """The changes of a command that was recorded, ``fedsa-lora run WORD ...``."""
    return changes(shlex.split(command)[2:])


def task_title(words: Sequence[str], node: dict[str, Any]) -> str:
    """A title from the data and the number of clients of a resolved config: ``tickets.csv, 8 clients``."""
    chosen = {named(word): word.partition("=")[2] for word in words}
    task, federation = node.get("task"), node.get("federation")
    data = chosen.get("task")
    if data is not None and data.startswith("{") and isinstance(task, dict):
        data = str(task.get("_target_")).rpartition(".")[2]
    elif data in OWN_MODEL and isinstance(task, dict):
        data = task[OWN_MODEL[data]]
    elif (data in (None, "text") or "task.dataset" in chosen) and isinstance(task, dict):
        data = Path(str(task.get("dataset") or data)).name
    clients = federation.get("clients") if isinstance(federation, dict) else None
    return f"{data}, {clients} clients"
