"""From plain resolved settings to a ``RunConfig``, or every fault that keeps them from being one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from typing import Any

from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import Strategy

from fedsa_lora.binding import (
    TARGET,
    arguments_of,
    bind,
    check_arguments,
    raise_faults,
    resolve_target,
    unknown,
)
from fedsa_lora.compatibility import clashes
from fedsa_lora.errors import FedSAError
from fedsa_lora.exchange.codec import Codec
from fedsa_lora.exchange.split import SplitPolicy
from fedsa_lora.exchange.wire import MAX_EXAMPLES
from fedsa_lora.learning.personalisation import Personalisation
from fedsa_lora.learning.settings import LoraSettings, TrainSettings
from fedsa_lora.settings import (
    EvaluationSettings,
    FederationSettings,
    Heading,
    HeadSettings,
    MachineSettings,
    RunConfig,
    RunSettings,
)
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.backdoor import Backdoor
from fedsa_lora.tasks.model_settings import ModelSettings, resolve
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.shipped import SHIPPED
from fedsa_lora.tasks.task import Task
from strategies import FedSA
from strategies.bounds import Bounds
from strategies.grouping import Clusters

SPLITS = ("fedsa_lora.exchange.",)
CODECS = ("fedsa_lora.exchange.",)
PERSONAL = ("fedsa_lora.learning.",)
TASKS = ("fedsa_lora.tasks.",)
STRATEGIES = ("flwr.server.strategy.", "strategies.")
BUILT = ("initial_parameters", "seed")  # arguments of a strategy that the run itself supplies
# What a task is bound with to look at its data alone.
_SOUND = {"model": {"pretrained": False, "config": {"model_type": "bert"}}, "federation": {}, "seed": 0}

# Intervals of numbers: (low, high, whether low itself is allowed); None is unbounded.
RANGES: dict[str, tuple[float, float | None, bool]] = {
    "seed": (0, None, True),
    "lora.r": (1, None, True),
    "lora.alpha": (0, None, False),
    "lora.dropout": (0, 0.95, True),
    "head.row_norm": (0, None, False),
    "train.lr": (0, None, False),
    "train.head_lr": (0, None, False),
    "train.steps": (1, None, True),
    "train.epochs": (1, None, True),
    "train.batch_size": (1, None, True),
    "train.eval_batch_size": (1, None, True),
    "train.weight_decay": (0, None, True),
    "train.momentum": (0, 1, True),
    "train.warmup": (0, 1, True),
    "train.clip_norm": (0, None, False),
    "train.max_update_norm": (0, None, False),
    "federation.clients": (1, None, True),
    "federation.min_examples": (1, None, True),
    "federation.validation_examples": (0, None, True),
    "federation.test_examples": (1, None, True),
    "federation.test_fraction": (0, 0.9, False),
    "federation.rounds": (1, None, True),
    "federation.min_results": (0, 1, True),
    "federation.wait_seconds": (1, None, True),
    "federation.min_clients": (0, 1, True),
    "federation.round_timeout": (0, None, False),
    "federation.max_skipped": (1, None, True),
    "federation.over_select": (1, None, True),
    "federation.retries": (0, None, True),
    "federation.exclude_after": (0, None, True),
    "federation.clients_per_node": (1, None, True),
    "federation.exclude_rounds": (1, None, True),
    "bounds.norm": (0, None, False),
    "bounds.median_factor": (1, None, True),
    "bounds.max_examples": (1, MAX_EXAMPLES, True),
    "bounds.max_rejections": (0, 1, True),
    "evaluation.every": (0, None, True),
    "evaluation.local_only_lr": (0, None, False),
    "evaluation.local_only_head_lr": (0, None, False),
    "machine.cpus_per_client": (1, None, True),
    "machine.gpus_per_client": (0, None, True),
    "machine.threads": (1, None, True),
    "run.keep_generations": (1, 100, True),  # each reply is searched for the values of all of them
}


def from_resolved(node: dict[str, Any], faults: list[str] | None = None) -> RunConfig:
    """Bind a config that was resolved before, such as the ``config.yaml`` of a run directory."""
    faults = [] if faults is None else faults
    known = [f.name for f in fields(RunConfig) if f.name != "resolved"]
    for key in node:
        if key not in known:
            faults.append(unknown(key, "key", known))
    for key in known:
        if key not in node:
            faults.append(f"{key}: missing")
    raise_faults(faults) if any(key not in node for key in known) else None
    _check_ranges(node, faults)
    values: dict[str, Any] = {
        key: bind(cls, node[key], key, faults)
        for key, cls in {
            "model": ModelSettings,
            "head": HeadSettings,
            "train": TrainSettings,
            "federation": FederationSettings,
            "bounds": Bounds,
            "evaluation": EvaluationSettings,
            "machine": MachineSettings,
            "run": RunSettings,
        }.items()
    }
    heading = bind(Heading, {f.name: node[f.name] for f in fields(Heading)}, "", faults)
    for key, cls in {"lora": LoraSettings, "clusters": Clusters, "attack": Backdoor}.items():
        values[key] = None if node[key] is None else bind(cls, node[key], key, faults)
    values["split"] = _bind_split(node["split"], values["head"], faults)
    values["personalisation"] = _bind_object(
        Personalisation, node["personalisation"], "personalisation", PERSONAL, faults
    )
    values["codec"] = _bind_object(Codec, node["codec"], "codec", CODECS, faults)
    coded = node["downlink"] is not None
    values["downlink"] = _bind_object(Codec, node["downlink"], "downlink", CODECS, faults) if coded else None
    _check_strategy(node["strategy"], faults)
    _check_contradictions(node, faults)
    task = _bind_task(node, faults)
    if faults:
        _look_for_files(node, task, faults)
    raise_faults(faults)
    assert heading is not None
    config = RunConfig(**asdict(heading), **values, strategy=node["strategy"], task=task, resolved=node)
    raise_faults(clashes(config, strategy_class(config)))
    return config


def strategy_class(config: RunConfig) -> type[Strategy]:
    """The class of the inner strategy."""
    faults: list[str] = []
    cls = resolve_target(config.strategy, "strategy", STRATEGIES, faults)
    raise_faults(faults)
    assert cls is not None
    return cls


def build_inner(config: RunConfig, **known: Any) -> Any:
    """The inner strategy; of ``known`` arguments it gets those that it takes and lacks."""
    cls = strategy_class(config)
    taken = arguments_of(cls)
    arguments = {k: v for k, v in known.items() if k in taken} | {
        k: v for k, v in config.strategy.items() if k != TARGET
    }
    return cls(**arguments)


def _bind_split(node: Any, head: HeadSettings | None, faults: list[str]) -> Any:
    if isinstance(node, Mapping) and "head" in node:
        faults.append("split.head: set the head's policy with head=")
        return None
    share = {} if head is None else {"head": head.share}
    whole = {**node, **share} if isinstance(node, Mapping) else node
    return _bind_object(SplitPolicy, whole, "split", SPLITS, faults)


def _bind_object(base: type[Any], node: Any, path: str, allowed: tuple[str, ...], faults: list[str]) -> Any:
    """An object of the class that ``_target_`` names, which must be a ``base``."""
    if (cls := resolve_target(node, path, allowed, faults)) is None:
        return None
    if not issubclass(cls, base):
        faults.append(f"{path}._target_: {cls.__name__} is no {base.__name__}")
        return None
    return bind(cls, node, path, faults)


def _bind_task(node: dict[str, Any], faults: list[str]) -> Any:
    cls = resolve_target(node["task"], "task", TASKS, faults)
    if cls is None:
        return None
    needed = [name for name, what in vars(Task).items() if inspect.isfunction(what) and name[0] != "_"]
    if not is_dataclass(cls) or any(not hasattr(cls, name) for name in needed):
        expected = f"expected a dataclass with {listing(needed)}"
        faults.append(f"task._target_: {cls.__name__} is no task; {expected}")
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
        faults.append(f"attack: {cls.__name__} has no classes to aim at; expected attack=none")
        return None
    found: list[str] = []
    task = bind(cls, {**node["task"], **shared}, "task", found)
    # faults of what is shared are already listed under their own names
    listed = tuple(f"task.{key}" for key in shared)
    faults.extend(f for f in found if not f.startswith(listed))
    return task


def _check_strategy(node: Any, faults: list[str]) -> None:
    if (cls := resolve_target(node, "strategy", STRATEGIES, faults)) is None:
        return
    if not issubclass(cls, Strategy) or issubclass(cls, FedSA):
        faults.append(f"strategy._target_: {cls.__name__} is no strategy that FedSA can wrap")
        return
    before = len(faults)
    check_arguments(cls, node, "strategy", faults, BUILT)
    if len(faults) > before:
        return
    try:
        given = {key: value for key, value in node.items() if key != TARGET}
        built = {"initial_parameters": ndarrays_to_parameters([]), "seed": 0}
        taken = arguments_of(cls)
        cls(**{key: value for key, value in built.items() if key in taken}, **given)
    except (TypeError, ValueError) as error:
        faults.append(f"strategy: {error}")


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


def _check_ranges(node: Mapping[str, Any], faults: list[str]) -> None:
    for key, (low, high, closed) in RANGES.items():
        value: Any = node
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        above = value >= low if closed else value > low
        if not above or value > (math.inf if high is None else high) or value == math.inf:
            lower = f"{'at least' if closed else 'more than'} {low:g}"
            upper = "" if high is None else f" and at most {high:g}"
            faults.append(f"{key}: {value!r} is out of range; expected {lower}{upper}")


def _check_contradictions(node: dict[str, Any], faults: list[str]) -> None:
    parts = [node[key] for key in ("split", "head", "train", "evaluation", "federation")]
    split, head, train, evaluation, federation = (part if isinstance(part, dict) else {} for part in parts)
    whole = split.get("base", "frozen") != "frozen"
    if whole and node["lora"] is not None:
        faults.append("split.base is trained, so there must be no adapters beside it: set lora=none")
    if not whole and node["lora"] is None:
        faults.append("lora=none leaves only the head to train: choose split=full, or lora=default")
    if not whole and "frozen" == split.get("A") == split.get("B") == head.get("policy"):
        faults.append("split and head freeze everything: there is nothing to train")
    if (train.get("steps") is None) == (train.get("epochs") is None):
        faults.append("train: give either steps or epochs, and set the other to null")
    if evaluation.get("part") == "validation" and federation.get("validation_examples") == 0:
        faults.append("evaluation.part=validation needs federation.validation_examples of at least 1")
