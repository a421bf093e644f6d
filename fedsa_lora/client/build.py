"""Builds the objects of a client from the config of its run: model, task, store, and the workbench of all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from flwr.client import NumPyClient

from fedsa_lora.client.client import FedSAClient
from fedsa_lora.client.cut import CutClient
from fedsa_lora.client.cut_bench import CutBench
from fedsa_lora.client.device import device, sharing
from fedsa_lora.client.workbench import Alone, Workbench
from fedsa_lora.decision import ATTENTION, BATCH, TOKENS, cohort_size, decided, number, recorded
from fedsa_lora.deployment.node_config import Node
from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.attention import measured_attention, use_attention, worth_measuring
from fedsa_lora.learning.checkpointing import checkpoint_layers
from fedsa_lora.learning.cohort.fit import why_not_any
from fedsa_lora.learning.cohort.passes import ON_CPU, pass_tokens
from fedsa_lora.learning.cut.parts import Part, adapted_part, build_part
from fedsa_lora.learning.given import adapted
from fedsa_lora.learning.memory import room
from fedsa_lora.learning.settings import AUTO, TrainSettings
from fedsa_lora.settings import RunConfig
from fedsa_lora.simulation import simulated
from fedsa_lora.store import DirectoryStore, PassedStore
from fedsa_lora.tasks.task import FileReading, Task

log = logging.getLogger("flwr")


def workbench(config: RunConfig, data: Path | None = None) -> Workbench:
    """The resident model and task of a process that serves clients; ``data`` are a node's own. Of a model
    that is cut it is the client's part; ``config.whole`` has it in one piece.

    Raises ConfigError where run and node disagree about whose data are trained on.
    """
    own = task(config, data)
    torch.set_num_threads(config.machine.threads)
    resident, whole = _resident(config)
    resident.hold_frozen(config.train.dtype)
    if config.train.gradient_checkpointing:
        checkpoint_layers(resident)
    settings = _settings(config, resident, own)
    _choose_attention(config, resident, own, settings)
    cohort = cohort_size(config)
    bench = Workbench(
        task=own,
        model=resident,
        split=config.split,
        settings=settings,
        seed=config.seed,
        personalisation=config.personalisation,
        requests=config.unlearning,
        codec=config.codec,
        downlink=config.downlink,
        ranks=config.federation.client_ranks(config.seed),
        counted=config.head.counted,
        head_row_norm=config.head.row_norm,
        part=config.evaluation.part,
        alone=_alone(config, settings) if config.evaluation.local_only else None,
        keep_trained=config.run.keep_trained,
        cohort=cohort,
        tokens=_pass_tokens(config, resident, own, settings) if cohort > 1 else ON_CPU,
    )
    return bench if config.cut is None else CutBench.of(bench, config.cut, config.split(whole).trained)


def task(config: RunConfig, data: Path | None) -> Task:
    """The run's task, on the node's own data, where it has any."""
    if data is not None and not config.federation.own:
        raise ConfigError(
            f"this node has its own data, {data}, but the run partitions another data set: start the run "
            "with partition=own, or the node without data.path",
            sent="this node has its own data, but the run partitions another data set",
            key="partition",
        )
    if config.task.by_client and data is not None:
        raise ConfigError(
            f"this node has its own data, {data}, but the run gets its data from a function: start the node "
            "without data.path",
            sent="this node has its own data, but the run gets its data from a function",
        )
    if not config.federation.own or config.task.by_client:
        return config.task
    if data is None or not isinstance(config.task, FileReading):
        raise ConfigError(
            "every node of this run uses its own data (partition=own): start this one with data.path=FILE",
            sent="this node has no data.path, or the task reads no files",
            key="partition",
        )
    return config.task.at(data)


def model(config: RunConfig) -> AdapterModel:
    """The pretrained model with its adapters, on the device to train on; of one that is cut a client's
    part."""
    return _resident(config)[0]


def _resident(config: RunConfig) -> tuple[AdapterModel, Layout]:
    """The same with the layout of the model in one piece."""
    place = device(config)
    if config.cut is not None:
        empty = config.task.build_model(seed=config.seed, empty=True)
        part = build_part(empty, config.model, config.cut, Part.CLIENT, seed=config.seed)
        whole = adapted(empty, config.lora, config.seed, config.model)
        return adapted_part(part.to(place), config.lora, config.seed, config.model), whole.layout
    backbone = config.task.build_model(seed=config.seed)
    if config.model.quantization is None:  # else it is where it was quantised: on a GPU, if there is one
        backbone = backbone.to(place)
    found = adapted(backbone, config.lora, config.seed, config.model)
    return found, found.layout


def _settings(config: RunConfig, resident: AdapterModel, own: Task) -> TrainSettings:
    """Those of local training; a batch size that the config leaves open is decided now, unless the run
    did."""
    if config.train.batch_size != AUTO:
        return config.train

    def measure() -> str:
        found = room(resident, own, own.load_client("0").train, config.train, sharing(config))
        log.info("train.batch_size=%s: %d in this run, as %s", AUTO, found.batch, found)
        return str(found.batch)

    return replace(config.train, batch_size=_decided(config, BATCH, measure))


def _pass_tokens(config: RunConfig, resident: AdapterModel, own: Task, settings: TrainSettings) -> int:
    """The tokens of a pass over several clients; in a simulation on a GPU the run decides by its memory."""

    def measure() -> str:
        return str(pass_tokens(resident, own, own.load_client("0").train, settings, sharing(config)))

    if resident.device.type != "cuda" or not simulated() or why_not_any(resident, own):
        return ON_CPU
    return _decided(config, TOKENS, measure)


def _decided(config: RunConfig, what: str, measure: Callable[[], str]) -> int:
    """A number that the run decides by a measurement; without a run directory it is measured each time."""
    found = decided(config.run_dir, what, measure) if config.run_dir.is_dir() else measure()
    return number(config.run_dir, what, found)


def _choose_attention(config: RunConfig, resident: AdapterModel, own: Task, settings: TrainSettings) -> None:
    """Have the model compute attention as the config says; where it leaves that open, as the run decided, or
    as a simulation measures now."""

    def measure() -> str:
        examples = own.load_client("0").train
        return measured_attention(resident, own, examples, settings)

    name: str = config.model.attention
    if name == "auto":
        name = recorded(config.run_dir).get(ATTENTION, name)
    undecided = name == "auto" and simulated() and config.run_dir.is_dir()
    if undecided and worth_measuring(resident, config.train):
        name = decided(config.run_dir, ATTENTION, measure)
    if name != "auto":
        use_attention(resident, name)


def client(node: Node, bench: Workbench, store: DirectoryStore) -> NumPyClient:
    """The client that a node serves; ``store`` has what is its own."""
    forbid = node.forbid
    if node.store is not None and not node.share_tokens:
        forbid += tuple(sorted(bench.of_tokens))
    if isinstance(bench, CutBench):
        return CutClient(node.client, bench, store, forbid)
    return FedSAClient(node.client, bench, store, forbid)


def store(config: RunConfig, client: str) -> DirectoryStore:
    """The store of a simulated client: in the run, or where the run config says."""
    kept = (config.store_dir, client, config.experiment, config.run.keep_generations)
    if config.federation.b_passing:
        return PassedStore(*kept, passed=config.run_dir / "passed")
    return DirectoryStore(*kept)


def _alone(config: RunConfig, train: TrainSettings) -> Alone:
    lr = config.evaluation.local_only_lr or config.train.lr
    head_lr = config.evaluation.local_only_head_lr or config.train.head_lr
    settings = replace(train, lr=lr, head_lr=head_lr)
    return Alone(config.split.alone(), settings, config.federation.rounds)
