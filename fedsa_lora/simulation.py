"""Simulation, as the processes of a run know of it: clients of one machine, played for one user."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flwr.app import UserConfigValue

if TYPE_CHECKING:
    from fedsa_lora.settings import RunConfig

SIMULATION = "FEDSA_LORA_SIMULATION"  # in the environment of what `fedsa-lora run` and run_in_process start


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
    """Raise ConfigError where clients that are not simulated are asked for what only simulated ones do."""
    if SIMULATION not in os.environ:
        for group in config.groups:
            group.check_deployed()
