"""Size of a simulation, through `flwr run` or in processes of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedsa_lora.errors import RunError


@dataclass(frozen=True)
class Simulation:
    """Size of a simulation. CPUs are whole numbers, as in Flower; clients may share a GPU (0.25 each).

    `cpus` and `gpus` bound what Ray hands out in all; None leaves the count to Ray. `env` is added to the
    environment of its processes.
    Raises RunError, with every fault, for a size that no client fits in.
    """

    supernodes: int
    cpus_per_client: int = 1
    gpus_per_client: float = 0.0
    cpus: int | None = None
    gpus: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = []
        if self.supernodes < 1:
            faults.append(f"supernodes is {self.supernodes}, expected at least 1")
        if self.cpus_per_client != int(self.cpus_per_client) or self.cpus_per_client < 1:
            faults.append(f"cpus_per_client is {self.cpus_per_client}, expected a whole number from 1")
        if self.gpus_per_client < 0:
            faults.append(f"gpus_per_client is {self.gpus_per_client}, expected 0 or more")
        if self.cpus is not None and self.cpus < self.cpus_per_client:
            faults.append(f"cpus is {self.cpus}, less than the {self.cpus_per_client} of one client")
        if self.gpus is not None and self.gpus < self.gpus_per_client:
            faults.append(f"gpus is {self.gpus}, less than the {self.gpus_per_client} of one client")
        if faults:
            raise RunError("no client fits in this simulation: " + "; ".join(faults))

    def federation_config(self) -> str:
        """Return the value of `flwr run --federation-config`."""
        values = {
            "num-supernodes": int(self.supernodes),
            "client-resources-num-cpus": int(self.cpus_per_client),
            "client-resources-num-gpus": float(self.gpus_per_client),
            "init-args-num-cpus": self.cpus,
            "init-args-num-gpus": self.gpus,
        }
        return " ".join(f"{key}={value}" for key, value in values.items() if value is not None)


@dataclass(frozen=True)
class Processes:
    """Size of a simulation in processes of this machine: ``workers`` that serve clients, the nodes that they
    serve, and the clients whose jobs are done in one pass, unless the run decided so before. ``alone`` is the
    reason that each is done by itself, where there is one."""

    workers: int
    nodes: int
    cohort: int = 1
    alone: str = ""
