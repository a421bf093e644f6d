"""Device that clients train on, as ``machine.device`` names it."""

from __future__ import annotations

import importlib.util
import os

import torch

from fedsa_lora.errors import ConfigError
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.model_settings import FLASH

QUANTISER = "bitsandbytes"
VISIBLE = "CUDA_VISIBLE_DEVICES"  # the GPUs that CUDA shows to a process, which it numbers from 0
ALONE = "FEDSA_LORA_GPU"  # for processes that are shown one GPU alone: its name elsewhere


def device(config: RunConfig) -> torch.device:
    """The device to train on. Raises ConfigError when a GPU is asked for that is not there, or attention that
    needs one, or a package that reads the model."""
    if config.model.quantization and importlib.util.find_spec(QUANTISER) is None:
        raise ConfigError(
            f"model.quantization={config.model.quantization} needs the package {QUANTISER}, which is not "
            'installed: pip install "fedsa-lora[quantization]", or set model.quantization=null',
            sent="the package that quantises the model is not installed here",
            key="model.quantization",
        )
    chosen = _chosen(config)
    if config.model.attention == FLASH and chosen.type != "cuda":
        raise ConfigError(
            f"model.attention={FLASH} needs a CUDA device, and the run is on {chosen.type}: set "
            "model.attention=sdpa",
            sent="the attention of the run needs a CUDA device",
            key="model.attention",
        )
    return chosen


def _chosen(config: RunConfig) -> torch.device:
    wanted = config.machine.device
    if wanted == os.environ.get(ALONE):
        wanted = "cuda"
    there = gpus()
    if wanted == "auto":
        return torch.device("cuda" if there else "cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    if not there:
        raise ConfigError(
            f"machine.device={wanted}, but torch sees no CUDA device: set machine.device=cpu, or check the "
            "driver and that torch was installed with CUDA",
            sent="there is no CUDA device here",
            key="machine.device",
        )
    if wanted not in ("cuda", *there):
        raise ConfigError(
            f"machine.device={wanted}, but torch sees {len(there)} CUDA device(s): {', '.join(there)}; name "
            f"one of them, or look at {VISIBLE}, which may hide others",
            sent="there is no CUDA device with that number here",
            key="machine.device",
        )
    return torch.device(wanted)


def gpus() -> list[str]:
    """The names of the GPUs that torch sees, such as cuda:0."""
    if not torch.cuda.is_available():
        return []
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def usable_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sharing(config: RunConfig) -> int:
    """The processes of a simulation that share the memory of a device, at most."""
    machine = config.machine
    if device(config).type == "cuda" and machine.gpus_per_client:
        return max(1, int(1 / machine.gpus_per_client))
    return max(1, min(usable_cores() // machine.cpus_per_client, config.federation.nodes))


def shown_alone(chosen: torch.device) -> dict[str, str]:
    """The environment of processes that are to see one GPU alone, where a device names one. Ray hands out
    what it sees, and whatever it hands out is cuda:0 to the process that gets it."""
    if chosen.index is None:
        return {}
    shown = os.environ.get(VISIBLE)
    place = str(chosen.index) if not shown else shown.split(",")[chosen.index]
    return {VISIBLE: place, ALONE: str(chosen)}
