"""Puts the objects of a run together from its config, for either side of the wire."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from flwr.app import UserConfigValue
from flwr.common import ndarrays_to_parameters

from fedsa_lora.client.workbench import Alone, Workbench
from fedsa_lora.config.outside import run_name_fault
from fedsa_lora.deployment.node_config import Node
from fedsa_lora.deployment.node_store import NodeStore
from fedsa_lora.deployment.registry import read_registry
from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, NamedArrays
from fedsa_lora.exchange.reported import ATTACKED
from fedsa_lora.exchange.split import AdapterSplit
from fedsa_lora.federation import PASSED
from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.settings import RunConfig
from fedsa_lora.store import DirectoryStore, PassedStore
from fedsa_lora.tasks.task import Task
from fedsa_lora.tasks.text import TextData
from strategies import Attendance, ClusteredFedSA, Evaluation, FedSA, Recorder, Roster
from strategies.rules.exact import FactorRule, pairs
from strategies.rules.exactness import Frozen

SIMULATION = "FEDSA_LORA_SIMULATION"  # in the environment of what `fedsa-lora run` and run_in_process start


def device(config: RunConfig) -> torch.device:
    """The device to train on. Raises ConfigError when a GPU is asked for that is not there."""
    wanted = config.machine.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "machine.device=cuda, but torch sees no CUDA device: set machine.device=cpu, or check the driver "
            "and that torch was installed with CUDA",
            sent="there is no CUDA device here",
            key="machine.device",
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def workbench(config: RunConfig, data: Path | None = None) -> Workbench:
    """The resident model and task of a process that serves clients; ``data`` are a node's own.

    Raises ConfigError where run and node disagree about whose data are trained on.
    """
    own = task(config, data)
    torch.set_num_threads(config.machine.threads)
    resident = model(config)
    resident.hold_frozen(config.train.dtype)
    return Workbench(
        task=own,
        model=resident,
        split=config.split,
        settings=config.train,
        seed=config.seed,
        personalisation=config.personalisation,
        codec=config.codec,
        downlink=config.downlink,
        ranks=config.federation.client_ranks(config.seed),
        counted=config.head.counted,
        head_row_norm=config.head.row_norm,
        part=config.evaluation.part,
        alone=_alone(config) if config.evaluation.local_only else None,
        keep_trained=config.run.keep_trained,
    )


def task(config: RunConfig, data: Path | None) -> Task:
    """The run's task, on the data of a node that has some of its own."""
    if data is not None and not config.federation.own:
        raise ConfigError(
            f"this node has data of its own, {data}, and the run divides another data set: start the run "
            "with partition=own, or the node without data.path",
            sent="this node has data of its own, and the run divides another data set",
            key="partition",
        )
    if not config.federation.own:
        return config.task
    if data is None or not isinstance(config.task, TextData):
        raise ConfigError(
            "every node of this run has data of its own (partition=own): start this one with data.path=FILE",
            sent="this node has no data of its own, or the task reads none",
            key="partition",
        )
    return config.task.at(data)


def model(config: RunConfig) -> AdapterModel:
    """The pretrained model with its adapters, on the device to train on."""
    backbone = config.task.build_model(seed=config.seed).to(device(config))
    return AdapterModel(attach(backbone, config.lora, config.seed))


def skeleton(config: RunConfig) -> AdapterModel:
    """The model on the meta device: names, shapes and roles, not one weight."""
    empty = config.task.build_model(seed=config.seed, empty=True)
    return AdapterModel(attach(empty, config.lora, config.seed))


def store(config: RunConfig, client: str) -> DirectoryStore:
    """The store of a simulated client: in the run, or where the run config says."""
    kept = (config.store_dir, client, config.experiment, config.run.keep_generations)
    if config.federation.b_passing:
        return PassedStore(*kept, passed=config.run_dir / "passed")
    return DirectoryStore(*kept)


def node_store(config: RunConfig, node: Node) -> DirectoryStore:
    """The store of a node's client: below the store that the node names, in a folder for
    each run. Raises ConfigError where the node does not do what the run asks of its store."""
    if node.store is None:
        return store(config, node.client)
    if fault := run_name_fault(config.run_dir.name):
        raise ConfigError(fault, sent="a node cannot name a folder by this directory", key="run.dir")
    if config.run.keep_messages and not node.keep_messages:
        raise ConfigError(
            "run.keep_messages: this node keeps no messages; start it with keep-messages=true, or the run "
            "without",
            sent="this node keeps no messages",
            key="run.keep_messages",
        )
    place, experiment = node.store / config.run_dir.name, config.experiment
    return NodeStore(place, node.client, experiment, config.run.keep_generations, node.evaluations)


def simulated() -> bool:
    """True where the clients of this process are a simulation's, whose run config is the user's own: it was
    started by ``fedsa-lora run`` or ``run_in_process``, or is an actor of Ray, as under ``flwr run``."""
    ray = sys.modules.get("ray")
    return SIMULATION in os.environ or (ray is not None and ray.is_initialized())


def composed(run_config: Mapping[str, UserConfigValue]) -> str:
    """The resolved config that a simulation is handed, so that none of its processes composes it again; empty
    elsewhere: what a stranger resolved would pass the checks by which overrides from outside are composed."""
    return str(run_config.get("composed", "")) if SIMULATION in os.environ else ""


def refuse_unsimulated(config: RunConfig) -> None:
    """Raise ConfigError where clients that are not simulated would pass on what is theirs, or poison it."""
    if SIMULATION in os.environ:
        return
    if config.federation.b_passing:
        raise ConfigError(
            f"federation.b_passing: {PASSED}, and done in simulation only; start it with `fedsa-lora run`, "
            "or set it to false",
            sent="clients pass B on in simulation only",
            key="federation.b_passing",
        )
    if config.attack is not None:
        raise ConfigError(
            "attack: clients that poison their data exist in simulation only; start it with `fedsa-lora "
            "run`, or set attack=none",
            sent="clients poison their data in simulation only",
            key="attack",
        )


def strategy(config: RunConfig, recorder: Recorder, run: str = "", resumed: int = 0) -> FedSA:
    """FedSA around the configured strategy, from names and shapes alone; ``run`` is what clients know
    it by, and ``resumed`` how often it was.

    Raises SplitError, ConfigError or ModelError for a split, a strategy or a personalisation that the model
    does not fit.
    """
    empty = skeleton(config)
    config.personalisation.check(empty)
    split: AdapterSplit = config.split(empty.layout)
    layout = empty.layout.select(split.shared)
    start = initial_state(empty.layout, config.seed, config.head.row_norm)
    initial = layout.pack({name: start[name] for name in layout.names})
    inner = config.strategy.build(initial_parameters=ndarrays_to_parameters([initial]), seed=config.seed)
    if isinstance(inner, FactorRule):
        _check_factors(inner, layout, empty)
    kind: Callable[..., FedSA] = FedSA
    if config.clusters is not None:
        kind = partial(ClusteredFedSA, clusters=config.clusters)
    return kind(
        inner,
        layout,
        initial,
        split=config.split,
        codec=config.codec,
        downlink=config.downlink,
        ranks=config.federation.client_ranks(config.seed),
        tell_total=config.personalisation.mixes,
        classes=len(config.task.labels()) if config.head.counted and layout.count("head") else 0,
        frozen=None if _beyond_head(empty) else _frozen(empty.layout.select(split.frozen), start),
        roster=_roster(config),
        evaluation=Evaluation(
            rounds=config.federation.rounds,
            every=config.evaluation.every,
            before=config.evaluation.before,
            before_each=config.evaluation.before_each,
            reference=config.evaluation.local_only,
        ),
        recorder=recorder,
        uniform=config.federation.weights == "uniform",
        bounds=config.bounds,
        measures=(*config.task.measures, *([ATTACKED] if config.attack else [])),
        min_results=config.federation.min_results,
        attendance=Attendance(
            max_skipped=min(config.federation.max_skipped, config.federation.rounds),
            exclude_after=config.federation.exclude_after,
            exclude_rounds=config.federation.exclude_rounds,
        ),
        run=run,
        resumed=resumed,
    )


def _roster(config: RunConfig) -> Roster:
    """The roster of the run. Raises ConfigError for a registry with faults; where it is not on this machine,
    it is read on that of the SuperLink."""
    federation, registry = config.federation, None
    if federation.registry is not None:
        path = Path(federation.registry)
        registry = partial(read_registry, path)
        if path.exists():
            registry()
    return Roster(
        config.seed,
        federation.clients,
        None if federation.superlink is None else federation.wait_seconds,
        least=federation.min_clients,
        registry=registry,
        over_select=federation.over_select,
    )


def _beyond_head(model: AdapterModel) -> frozenset[str]:
    """The tensors that are exchanged as differences, without those of a head that the checkpoint has."""
    return frozenset(
        spec.name for spec in model.layout if spec.name in model.relative and spec.role != "head"
    )


def _frozen(layout: Layout, start: NamedArrays) -> Frozen:
    factors = layout.select(spec.name for spec in layout if spec.role in ("A", "B"))
    return Frozen(factors, {name: start[name] for name in factors.names})


def _check_factors(rule: FactorRule, layout: Layout, model: AdapterModel) -> None:
    """Raise ConfigError where a rule cannot have the factors themselves."""
    if unknown := sorted(_beyond_head(model) & set(layout.names)):
        raise ConfigError(
            f"{type(rule).__name__} needs the factors themselves; with this lora.variant and lora.init the "
            f"server knows only their change, for example of {unknown[0]}: expected lora.init=default"
        )
    pairs(layout)


def _alone(config: RunConfig) -> Alone:
    lr = config.evaluation.local_only_lr or config.train.lr
    head_lr = config.evaluation.local_only_head_lr or config.train.head_lr
    settings = replace(config.train, lr=lr, head_lr=head_lr)
    return Alone(config.split.alone(), settings, config.federation.rounds)
