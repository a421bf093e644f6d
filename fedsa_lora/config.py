"""The typed configuration of a run. The only file that knows Hydra."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedsa_lora.binding import TARGET, bind, check_arguments, raise_faults, resolve_target, unknown
from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.split import RoleSplit
from fedsa_lora.learning.adapters import LoraSettings
from fedsa_lora.learning.training import TrainSettings
from fedsa_lora.tasks.backbone import ModelSettings
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.task import Task

PACKAGE = Path(__file__).resolve().parent
# a wheel carries conf/ inside the package, a checkout and a Flower bundle beside it
CONF = next((f for f in (PACKAGE / "conf", PACKAGE.parent / "conf") if f.is_dir()), PACKAGE / "conf")
TASKS = ("fedsa_lora.tasks.",)
STRATEGIES = ("flwr.server.strategy.", "strategies.")

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
    "federation.clients": (1, None, True),
    "federation.min_examples": (1, None, True),
    "federation.validation_examples": (0, None, True),
    "federation.test_examples": (1, None, True),
    "federation.test_fraction": (0, 0.9, False),
    "federation.rounds": (1, None, True),
    "federation.min_results": (0, 1, True),
    "federation.wait_seconds": (1, None, True),
    "federation.round_timeout": (0, None, False),
    "evaluation.every": (0, None, True),
    "evaluation.local_only_lr": (0, None, False),
    "evaluation.local_only_head_lr": (0, None, False),
    "machine.cpus_per_client": (1, None, True),
    "machine.gpus_per_client": (0, None, True),
    "machine.threads": (1, None, True),
    "run.keep_generations": (1, None, True),
}


@dataclass(frozen=True)
class SplitSettings:
    """What becomes of A, B and the backbone; the head has a policy of its own."""

    A: Literal["shared", "local", "frozen"]
    B: Literal["shared", "local", "frozen"]
    base: Literal["shared", "local", "frozen"] = "frozen"


@dataclass(frozen=True)
class HeadSettings:
    """What becomes of the classifier; ``row_norm`` sets the norm of its random rows at the start."""

    policy: Literal["shared", "local", "frozen"]
    row_norm: float | None = None


@dataclass(frozen=True)
class FederationSettings(PartitionSettings):
    """Who takes part with which data, and for how long.

    ``min_results``: share of the sampled clients that must answer well for a round to count;
    ``wait_seconds``: how long to wait for all clients to connect.
    """

    rounds: int = 12
    min_results: float = 1.0
    wait_seconds: int = 120
    round_timeout: float | None = None


@dataclass(frozen=True)
class EvaluationSettings:
    """All clients are evaluated every ``every`` rounds (0: never between) and at the end.

    ``before``: also measure each client before aggregation. ``local_only``: at the end, train
    each client alone for comparison, with its own learning rate where one is given. ``part``:
    "validation" measures on held-out train examples, to choose hyperparameters with.
    """

    part: Literal["test", "validation"] = "test"
    every: int = 1
    before: bool = True
    local_only: bool = True
    local_only_lr: float | None = None
    local_only_head_lr: float | None = None


@dataclass(frozen=True)
class MachineSettings:
    """What one simulated client may use; ``gpus_per_client`` null shares one GPU when there is one."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_client: int = 1
    gpus_per_client: float | None = None
    threads: int = 1


@dataclass(frozen=True)
class RunSettings:
    """Where a run writes. ``store`` null keeps the clients' state in the run directory.

    ``keep_messages`` writes every serialised reply of every client beside its state, for audits.
    """

    dir: str | None = None
    store: str | None = None
    keep_generations: int = 3
    keep_messages: bool = False


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run; the same values give the same bits on one CPU thread."""

    name: str
    title: str
    description: str
    seed: int
    task: Task
    model: ModelSettings
    lora: LoraSettings | None
    split: RoleSplit
    head: HeadSettings
    train: TrainSettings
    strategy: dict[str, Any]
    federation: FederationSettings
    evaluation: EvaluationSettings
    machine: MachineSettings
    run: RunSettings
    resolved: dict[str, Any] = field(repr=False)

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir or f"runs/{self.name}").expanduser().resolve()

    @property
    def store_dir(self) -> Path:
        return Path(self.run.store).expanduser().resolve() if self.run.store else self.run_dir / "clients"


def load(overrides: Sequence[str] | str = (), default_dir: str | None = None) -> RunConfig:
    """Compose, resolve and bind. ``overrides`` in Hydra's syntax, as a list or one shell-like string.

    ``default_dir`` is the run directory when none is configured. Raises ConfigError listing every
    unknown key, wrong type, value out of range and contradiction at once.
    """
    words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    faults: list[str] = []
    composable = _composable(words, faults)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            node = OmegaConf.to_container(compose("run", overrides=composable), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        faults.append(" ".join(str(error).split()))
        raise_faults(faults)
        raise
    assert isinstance(node, dict)
    if default_dir is not None and isinstance(node.get("run"), dict) and not node["run"].get("dir"):
        node["run"]["dir"] = default_dir
    return from_resolved({str(k): v for k, v in node.items()}, faults)


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
            "evaluation": EvaluationSettings,
            "machine": MachineSettings,
            "run": RunSettings,
        }.items()
    }
    values["lora"] = None if node["lora"] is None else bind(LoraSettings, node["lora"], "lora", faults)
    split = bind(SplitSettings, node["split"], "split", faults)
    _check_strategy(node["strategy"], faults)
    _check_contradictions(node, faults)
    task = _bind_task(node, faults)
    raise_faults(faults)
    assert split is not None
    values["split"] = RoleSplit(A=split.A, B=split.B, base=split.base, head=values["head"].policy)
    plain = {key: node[key] for key in ("name", "title", "description", "seed", "strategy")}
    return RunConfig(**plain, **values, task=task, resolved=node)


def build_inner(config: RunConfig, **known: Any) -> Any:
    """The inner Flower strategy; of ``known`` arguments it gets those that it takes and lacks."""
    faults: list[str] = []
    cls = resolve_target(config.strategy, "strategy", STRATEGIES, faults)
    raise_faults(faults)
    assert cls is not None
    taken = inspect.signature(cls).parameters
    arguments = {k: v for k, v in known.items() if k in taken} | {
        k: v for k, v in config.strategy.items() if k != TARGET
    }
    return cls(**arguments)


def _bind_task(node: dict[str, Any], faults: list[str]) -> Any:
    cls = resolve_target(node["task"], "task", TASKS, faults)
    if cls is None:
        return None
    federation = node["federation"] if isinstance(node["federation"], dict) else {}
    partition = {f.name: federation[f.name] for f in fields(PartitionSettings) if f.name in federation}
    shared = {"model": node["model"], "partition": partition, "seed": node["seed"]}
    found: list[str] = []
    task = bind(cls, {**node["task"], **shared}, "task", found)
    # faults of model and partition are already listed under their own names
    faults.extend(f for f in found if not f.startswith(("task.model", "task.partition", "task.seed")))
    return task


def _check_strategy(node: Any, faults: list[str]) -> None:
    if (cls := resolve_target(node, "strategy", STRATEGIES, faults)) is not None:
        check_arguments(cls, node, "strategy", faults)


def _check_ranges(node: Mapping[str, Any], faults: list[str]) -> None:
    for key, (low, high, closed) in RANGES.items():
        value: Any = node
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not (value >= low if closed else value > low) or (high is not None and value > high):
            lower = f"{'at least' if closed else 'more than'} {low:g}"
            upper = "" if high is None else f" and at most {high:g}"
            faults.append(f"{key}: {value!r} is out of range; expected {lower}{upper}")


def _check_contradictions(node: dict[str, Any], faults: list[str]) -> None:
    parts = [node[key] for key in ("split", "head", "train")]
    split, head, train = (part if isinstance(part, dict) else {} for part in parts)
    whole = split.get("base", "frozen") != "frozen"
    if whole and node["lora"] is not None:
        faults.append("split.base is trained, so there must be no adapters beside it: set lora=none")
    if not whole and node["lora"] is None:
        faults.append("lora=none leaves only the head to train: choose split=full, or lora=default")
    if not whole and "frozen" == split.get("A") == split.get("B") == head.get("policy"):
        faults.append("split and head freeze everything: there is nothing to train")
    if (train.get("steps") is None) == (train.get("epochs") is None):
        faults.append("train: give either steps or epochs, and set the other to null")


def _composable(words: Sequence[str], faults: list[str]) -> list[str]:
    """Overrides that Hydra can always compose: keys it does not know are added, for ``bind`` to name."""
    parser = OverridesParser.create()
    kept = []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            faults.append(f"{word!r}: not an override; expected key=value ({' '.join(str(error).split())})")
            continue
        if not (CONF / override.key_or_group).is_dir():
            kept.append(word if word[0] in "+~" else f"++{word}")
        elif _is_option(override, faults):
            kept.append(word)
    return kept


def _is_option(override: Override, faults: list[str]) -> bool:
    group, value = override.key_or_group, override.value()
    if not isinstance(value, str) or (CONF / group / f"{value}.yaml").is_file():
        return True
    options = [str(p.relative_to(CONF / group).with_suffix("")) for p in (CONF / group).rglob("*.yaml")]
    faults.append(unknown(f"{group}={value}", "option", options, value))
    return False


def read_config(run_dir: Path) -> RunConfig:
    """The config of a run directory. Raises ConfigError when there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir} is no run directory: it has no config.yaml")
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(node, dict)
    return from_resolved({str(k): v for k, v in node.items()})


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML; ``read_config`` reads it back to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.create(config.resolved))
