"""The typed configuration of a run. The only file that knows Hydra."""

from __future__ import annotations

import inspect
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from flwr.server.strategy import Strategy
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fedsa_lora.binding import TARGET, bind, check_arguments, raise_faults, resolve_target, unknown
from fedsa_lora.errors import ConfigError, FedSAError
from fedsa_lora.exchange.split import RoleSplit
from fedsa_lora.learning.adapters import LoraSettings
from fedsa_lora.learning.training import TrainSettings
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.backbone import ModelSettings, resolve
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.task import Task

PACKAGE = Path(__file__).resolve().parent
# a wheel carries conf/ inside the package, a checkout and a Flower bundle beside it
CONF = next((f for f in (PACKAGE / "conf", PACKAGE.parent / "conf") if f.is_dir()), PACKAGE / "conf")
TASKS = ("fedsa_lora.tasks.",)
STRATEGIES = ("flwr.server.strategy.", "strategies.")
BUILT = ("initial_parameters",)  # arguments of a strategy that the run itself supplies
NONE_CHOSEN = ("experiment",)  # groups of which none need be chosen
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
class Heading:
    """What a run is called, and the seed of everything that it draws."""

    name: str
    title: str
    description: str
    seed: int


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
    try:
        words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    except ValueError as error:
        raise ConfigError(f"overrides {overrides!r}: {error}; close every quote") from None
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
    heading = bind(Heading, {f.name: node[f.name] for f in fields(Heading)}, "", faults)
    values["lora"] = None if node["lora"] is None else bind(LoraSettings, node["lora"], "lora", faults)
    split = bind(SplitSettings, node["split"], "split", faults)
    _check_strategy(node["strategy"], faults)
    _check_contradictions(node, faults)
    task = _bind_task(node, faults)
    if faults:
        _look_for_files(node, task, faults)
    raise_faults(faults)
    assert heading is not None
    assert split is not None
    values["split"] = RoleSplit(A=split.A, B=split.B, base=split.base, head=values["head"].policy)
    return RunConfig(**asdict(heading), **values, strategy=node["strategy"], task=task, resolved=node)


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
    needed = [name for name, what in vars(Task).items() if inspect.isfunction(what) and name[0] != "_"]
    if not is_dataclass(cls) or any(not hasattr(cls, name) for name in needed):
        expected = f"expected a dataclass with {listing(needed)}"
        faults.append(f"task._target_: {cls.__name__} is no task; {expected}")
        return None
    federation = node["federation"] if isinstance(node["federation"], dict) else {}
    partition = {f.name: federation[f.name] for f in fields(PartitionSettings) if f.name in federation}
    shared = {"model": node["model"], "partition": partition, "seed": node["seed"]}
    for key in sorted(shared.keys() & node["task"].keys()):
        own = [f.name for f in fields(cls) if f.name not in shared]
        faults.append(unknown(f"task.{key}", "key", own))
    found: list[str] = []
    task = bind(cls, {**node["task"], **shared}, "task", found)
    # faults of model and partition are already listed under their own names
    faults.extend(f for f in found if not f.startswith(("task.model", "task.partition", "task.seed")))
    return task


def _check_strategy(node: Any, faults: list[str]) -> None:
    if (cls := resolve_target(node, "strategy", STRATEGIES, faults)) is None:
        return
    if issubclass(cls, Strategy):
        check_arguments(cls, node, "strategy", faults, BUILT)
    else:
        faults.append(f"strategy._target_: {cls.__name__} is no Flower strategy")


def _look_for_files(node: dict[str, Any], task: Task | None, faults: list[str]) -> None:
    """Add what is named but not there. The data are read for it, so it is only done where a run is
    refused anyway; ``make_plan`` looks again before one starts."""
    model = node["model"] if isinstance(node["model"], dict) else {}
    paths = [path for path in (model.get("path"), model.get("tokenizer")) if path and isinstance(path, str)]
    looks: list[Callable[[], object]] = [partial(resolve, path) for path in dict.fromkeys(paths)]
    if task is not None:
        looks.append(task.describe)
    elif (alone := _bind_task(node | _SOUND, [])) is not None:
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
        if override.is_sweep_override():
            faults.append(f"{word!r}: a sweep; expected one value (a list is written key=[a,b])")
        elif not (CONF / override.key_or_group).is_dir():
            kept.append(word if word[0] in "+~" else f"++{word}")
        elif _is_option(override, faults):
            kept.append(word)
    return kept


def _is_option(override: Override, faults: list[str]) -> bool:
    """Whether Hydra can set a group so; a fault is added where it is none of the group's files."""
    group, value = override.key_or_group, override.value()
    options = [str(p.relative_to(CONF / group).with_suffix("")) for p in (CONF / group).rglob("*.yaml")]
    if isinstance(value, dict) or value in options:
        return True
    if value is not None or group not in NONE_CHOSEN:
        shown = "null" if value is None else value
        faults.append(unknown(f"{group}={shown}", "option", options, shown))
    return False


def read_config(run_dir: Path) -> RunConfig:
    """The config of a run directory, wherever it was moved to. Raises ConfigError when there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run_dir} is no run directory: it has no config.yaml")
    try:
        node = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(node, dict):
        raise ConfigError(f"{path} holds no settings: it was cut off or altered")
    if isinstance(node.get("run"), dict):
        node["run"]["dir"] = str(run_dir.resolve())
    return from_resolved({str(k): v for k, v in node.items()})


def to_yaml(config: RunConfig) -> str:
    """The resolved config as YAML; ``read_config`` reads it back to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.create(config.resolved))
