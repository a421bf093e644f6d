"""From plain resolved settings to a ``RunConfig``, or every fault that keeps them from being one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from fedsa_lora.binding import bind, bind_target, raise_faults, resolve_target, unknown, unknown_key, value_of
from fedsa_lora.errors import FedSAError
from fedsa_lora.exchange.measure import faults as measure_faults
from fedsa_lora.exchange.split import SplitPolicy
from fedsa_lora.group import hints_of
from fedsa_lora.settings import EXCHANGE, TASKS, HeadSettings, RunConfig
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.defaults import TaskDefaults
from fedsa_lora.tasks.model_settings import resolve
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.shipped import SHIPPED
from fedsa_lora.tasks.task import Task
from strategies.rules.inner import bind_inner

# What a task is bound with to look at its data alone.
_SOUND = {"model": {"pretrained": False, "config": {"model_type": "bert"}}, "federation": {}, "seed": 0}


def from_resolved(node: dict[str, Any], faults: list[str] | None = None) -> RunConfig:
    """Bind a config that was resolved before, such as the ``config.yaml`` of a run directory."""
    faults = [] if faults is None else faults
    node = text_keys(node)
    hints = {key: hint for key, hint in hints_of(RunConfig).items() if key != "resolved"}
    for key in node:
        if key not in hints:
            faults.extend(unknown_key(key, node[key], list(hints)))
    if missing := [f"{key}: missing" for key in hints if key not in node]:
        raise_faults(faults + missing)
    of_others = ("split", "task", "strategy")  # bound with values of other groups, or built by the server
    values = {
        key: value_of(hint, node[key], key, faults) for key, hint in hints.items() if key not in of_others
    }
    values["split"] = _bind_split(node["split"], values["head"], faults)
    values["strategy"] = bind_inner(node["strategy"], "strategy", faults)
    values["task"] = _bind_task(node, faults)
    if faults:
        _look_for_files(node, values["task"], faults)
    raise_faults(faults)
    config = RunConfig(**values, resolved=node)
    raise_faults([fault for group in config.groups for fault in group.clashes(config)])
    return config


def text_keys(node: Any) -> Any:
    """The settings with keys of text alone, as a client 0 of ``federation.ranks`` is called."""
    if isinstance(node, Mapping):
        return {str(key): text_keys(value) for key, value in node.items()}
    if isinstance(node, list):
        return [text_keys(value) for value in node]
    return node


def _bind_split(node: Any, head: HeadSettings | None, faults: list[str]) -> Any:
    if isinstance(node, Mapping) and "head" in node:
        faults.append("split.head: set the head's policy with head=")
        return None
    share = {} if head is None else {"head": head.share}
    whole = {**node, **share} if isinstance(node, Mapping) else node
    return bind_target(SplitPolicy, whole, "split", EXCHANGE.allowed, faults)


def _bind_task(node: dict[str, Any], faults: list[str]) -> Any:
    cls = resolve_target(node["task"], "task", TASKS.allowed, faults)
    if cls is None:
        return None
    needed = [name for name, what in vars(Task).items() if inspect.isfunction(what) and name[0] != "_"]
    derived = TaskDefaults in cls.__mro__
    if not derived or not is_dataclass(cls) or any(not hasattr(cls, name) for name in needed):
        base = "TaskDefaults (fedsa_lora.tasks.defaults)"
        expected = f"expected a dataclass that derives from {base}, with {listing(needed)}"
        faults.append(f"task._target_: {cls.__name__} is not a task; {expected}")
        return None
    federation = node["federation"] if isinstance(node["federation"], dict) else {}
    partition = {f.name: federation[f.name] for f in fields(PartitionSettings) if f.name in federation}
    shared = {
        "model": node["model"], "partition": partition, "seed": node["seed"], "attack": node["attack"],
    }  # fmt: skip
    for key in sorted(shared.keys() & node["task"].keys()):
        own = [f.name for f in fields(cls) if f.name not in shared]
        faults.append(unknown(f"task.{key}", "key", own))
    if not hasattr(cls, "attack") and shared.pop("attack") is not None:
        faults.append(f"attack: {cls.__name__} has no classes to target; expected attack=none")
        return None
    found: list[str] = []
    task = bind(cls, {**node["task"], **shared}, "task", found)
    # faults of what is shared are already listed under their own names
    listed = tuple(f"task.{key}" for key in shared)
    faults.extend(f for f in found if not f.startswith(listed))
    if task is not None:
        of_task = measure_faults(getattr(task, "measures", ()))
        faults.extend(f"task._target_: {cls.__name__}.{fault}" for fault in of_task)
    return task


def _look_for_files(node: dict[str, Any], task: Task | None, faults: list[str]) -> None:
    """Add what is named but not there. The data are read for it, so it is only done where a run is
    refused anyway, and not for a shipped set, which is there; ``make_plan`` looks again before one starts."""
    model = node["model"] if isinstance(node["model"], dict) else {}
    paths = [path for path in (model.get("path"), model.get("tokenizer")) if path and isinstance(path, str)]
    looks: list[Callable[[], object]] = [partial(resolve, path) for path in dict.fromkeys(paths)]
    shipped = isinstance(node["task"], dict) and node["task"].get("dataset") in SHIPPED
    if task is not None and not shipped:
        looks.append(task.describe)
    elif not shipped and (alone := _bind_task(node | _SOUND, [])) is not None:
        looks.append(alone.labels)
    for look in looks:
        try:
            look()
        except FedSAError as error:
            faults.append(str(error))
