"""Plan of a run, before it starts: parameters, bytes, clients, processes and places."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch

from fedsa_lora.binding import attempt, raise_errors
from fedsa_lora.client.device import device, shown_alone, usable_cores
from fedsa_lora.errors import ConfigError, FedSAError
from fedsa_lora.launch.connection import Connection
from fedsa_lora.launch.size import Processes, Simulation
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.checkpointing import checkpoint_layers
from fedsa_lora.learning.cohort.fit import why_not_any, why_not_settings
from fedsa_lora.runs.place import refuse_used
from fedsa_lora.runs.summary import parameter_counts
from fedsa_lora.server.build import build_strategy, skeleton
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.backbone import build_backbone
from fedsa_lora.tasks.inspection import inspect_task
from fedsa_lora.tasks.task import FederationData
from strategies.round.ledger import Unwritten

LARGEST_COHORT = 16  # up to which more clients in a pass were never slower (benchmarks/cohort.py)
# Memory of a client as a multiple of its frozen weights: beside activations, those in fp32 have a second copy
# where a rule merges into them, and another, of half the size, where they are multiplied in half precision.
ROOM = {"fp32": 3, "bf16": 2}
ACTOR_OVERHEAD = 1.0e9  # bytes: Python, torch and transformers in one simulated node's process


@dataclass(frozen=True)
class Plan:
    """Sizes in parameters and bytes; ``divided``: lines on what becomes of the model, by title; ``adapted``:
    the number of layers with an adapter; ``model``: remarks on what its weights start from; ``machine`` is
    what trains them."""

    parameters: dict[str, int]
    divided: dict[str, str]
    adapted: int
    trained: int
    bytes_up: int
    federation: FederationData
    model: tuple[str, ...]
    place: Simulation | Processes | Connection
    machine: str
    run_dir: Path
    free_disk: int


def make_plan(config: RunConfig) -> Plan:
    """The plan of a run; writes nothing. Raises the one FedSAError of what would go wrong before it begins,
    or a ConfigError that lists all."""
    trained_on, federation, model, remarks = _checked(config)
    parameters = parameter_counts(config, model)
    held = config.at_client(model.layout)
    trained = held.select(config.split(held).trained).size
    place = _placed(config, trained_on, model, parameters)
    return Plan(
        parameters=parameters,
        divided=config.describe_model(model),
        adapted=len(model.scales),
        trained=trained,
        bytes_up=payload_bytes(config, model),
        federation=federation,
        model=remarks,
        place=place,
        machine=_machine(place, trained_on, config.federation.clients),
        run_dir=config.run_dir,
        free_disk=shutil.disk_usage(_existing(config.run_dir)).free,
    )


def _checked(
    config: RunConfig,
) -> tuple[torch.device | Connection, FederationData, AdapterModel, tuple[str, ...]]:
    """Everything that can go wrong before a run does so here: place, GPU, data, partition, model names.
    Returns what trains it, the clients' shares, the model's names and shapes, and remarks on its start.

    Raises the one FedSAError, or a ConfigError that lists all.
    """
    faults: list[FedSAError] = []
    if not config.run.resume:
        attempt(lambda: refuse_used(config.run_dir), faults)
    trained_on = attempt(lambda: _trained_on(config), faults)
    federation = attempt(config.task.describe, faults)
    if federation is not None:
        attempt(lambda: federation.check_measurable(config.evaluation.part), faults)
    model = attempt(lambda: _skeleton(config, federation), faults)
    remarks = None
    if not faults and model is not None:
        remarks = attempt(lambda: inspect_task(config.task), faults)
        attempt(lambda: build_strategy(config, model, Unwritten()), faults)
    if model is not None and config.train.gradient_checkpointing:
        attempt(lambda: checkpoint_layers(model), faults)
    raise_errors(faults)
    assert trained_on is not None
    assert federation is not None
    assert model is not None
    assert remarks is not None
    return trained_on, federation, model, remarks


def _placed(
    config: RunConfig,
    trained_on: torch.device | Connection,
    model: AdapterModel,
    parameters: dict[str, int],
) -> Simulation | Processes | Connection:
    """The processes of a simulation, and how many clients each trains at a time; those of a SuperLink are its
    own. Raises ConfigError as ``fit_simulation`` does."""
    if isinstance(trained_on, Connection):
        return trained_on
    place = fit_simulation(config, trained_on, _backbone_bytes(config, parameters))
    reasons = [*(group.why_alone for group in config.groups), why_not_any(model, config.task)]
    alone = next(filter(None, [*reasons, why_not_settings(config.train)]), "")
    if isinstance(place, Processes) and alone:
        return replace(place, cohort=1, alone=alone)
    return place


def _backbone_bytes(config: RunConfig, parameters: dict[str, int]) -> int:
    """The memory of the frozen weights, as they are held."""
    return int(parameters["base"] * config.model.bytes_each)


def _trained_on(config: RunConfig) -> torch.device | Connection:
    """The device to simulate on, or the SuperLink whose nodes bring their own."""
    federation = config.federation
    if federation.superlink is None:
        return device(config)
    certificates = federation.root_certificates
    return Connection(
        federation.superlink,
        None if certificates is None else Path(certificates),
        federation.insecure,
        by_key=federation.registry is not None,
    )


def fit_simulation(
    config: RunConfig, trained_on: torch.device, backbone_bytes: int
) -> Simulation | Processes:
    """As many clients at a time as cores and memory allow; on a GPU they share it in equal parts, and of
    several the one that the device names, or all.

    Raises ConfigError when not even one client fits, or the engine does not fit the device.
    """
    machine = config.machine
    if machine.engine == "inprocess" and trained_on.type != "cpu":
        raise ConfigError(
            "machine.engine=inprocess simulates on CPU only: add machine.device=cpu, or take "
            "machine.engine=ray"
        )
    cores = usable_cores()
    free = psutil.virtual_memory().available
    needed = ACTOR_OVERHEAD + ROOM[config.model.dtype] * backbone_bytes
    at_once = min(cores // machine.cpus_per_client, int(free / needed), config.federation.nodes)
    if at_once < 1:
        smaller = " in fp32; model.dtype=bf16 train.precision=bf16 halves the weights" * (
            config.model.dtype == "fp32"
        )
        raise ConfigError(
            f"no client fits this machine: {cores} cores for machine.cpus_per_client="
            f"{machine.cpus_per_client}, {free / 1e9:.1f} GB of free memory for the {needed / 1e9:.1f} GB "
            f"that one may need, including {backbone_bytes / 1e9:.1f} GB of weights{smaller}"
        )
    if machine.engine == "inprocess" or (machine.engine == "auto" and trained_on.type == "cpu"):
        return Processes(at_once, config.federation.nodes, _cohort(config, at_once))
    gpus = _gpus(trained_on)
    share = machine.gpus_per_client
    if share is None or not gpus:
        share = gpus / at_once
    return Simulation(
        supernodes=config.federation.nodes,
        cpus_per_client=machine.cpus_per_client,
        gpus_per_client=share,
        cpus=at_once * machine.cpus_per_client,
        gpus=gpus,
        env=shown_alone(trained_on),
    )


def _gpus(trained_on: torch.device) -> int:
    """The number of GPUs that a simulation is spread over."""
    if trained_on.type != "cuda":
        return 0
    return torch.cuda.device_count() if trained_on.index is None else 1


def _cohort(config: RunConfig, processes: int) -> int:
    """The clients in one pass: as many as leave work for every process. Where a client can be late, none
    holds up another."""
    if config.machine.cohort is not None:
        return config.machine.cohort
    if config.federation.round_timeout is not None:
        return 1
    return min(LARGEST_COHORT, -(-config.federation.clients // processes))


def _machine(
    place: Simulation | Processes | Connection, trained_on: torch.device | Connection, clients: int
) -> str:
    if isinstance(place, Connection):
        return f"the nodes of the SuperLink at {place.address}"
    if isinstance(place, Processes):
        each = -(-clients // place.workers)
        passes = f", {place.cohort} in one pass" if place.cohort > 1 else ""
        if place.alone and each > 1:
            passes = f", one at a time: {place.alone}"
        return f"{place.workers} processes on CPU, without Ray: about {each} clients each{passes}"
    name = "cpu"
    if place.gpus_per_client and isinstance(trained_on, torch.device):
        name = torch.cuda.get_device_name(trained_on)
        if trained_on.index is not None:
            name += f" ({trained_on})"
    return f"{_actors(place)} clients at a time on {name}, through Ray"


def _actors(simulation: Simulation) -> int:
    by_cpu = (simulation.cpus or 1) // simulation.cpus_per_client
    if not simulation.gpus_per_client:
        return by_cpu
    return min(by_cpu, int((simulation.gpus or 0) / simulation.gpus_per_client + 1e-9))


def payload_bytes(config: RunConfig, model: AdapterModel) -> int:
    """Bytes of what a client sends in a round, less the header, where the update is spread evenly; the
    larger of the first two rounds, which a split may have take turns."""
    held = config.at_client(model.layout)
    turns = [held.select(config.split.in_round(held, round_)) for round_ in (1, 2)]
    shared = max(turns, key=lambda layout: layout.size)
    update = np.random.default_rng(0).normal(size=shared.size).astype(np.float32)
    return int(config.codec.encode(update, np.random.default_rng(0)).nbytes)


def _skeleton(config: RunConfig, federation: FederationData | None) -> AdapterModel | None:
    """The model's names and shapes; where the data failed, a look at the model without their classes."""
    if federation is not None:
        return skeleton(config)
    if (auto_class := getattr(config.task, "auto_class", None)) is not None:
        classes = ("a", "b") if getattr(config.task, "builds_head", True) else ()
        build_backbone(auto_class, config.model, classes, seed=0, empty=True)
    return None


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
