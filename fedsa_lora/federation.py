"""Participants of a run: clients, their data, rounds and machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fedsa_lora.config.outside import run_name_fault
from fedsa_lora.errors import ConfigError
from fedsa_lora.group import CHANGEABLE, SERVED, at_least, more_than
from fedsa_lora.seeds import generator
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.task import FileReading

if TYPE_CHECKING:
    from fedsa_lora.settings import RunConfig

PASSED = "B is passed from client to client: not FedSA"


@dataclass(frozen=True)
class FederationSettings(PartitionSettings):
    """Settings of the clients, their data and the rounds.

    ``wait_seconds``: how long to wait for all clients to connect and to report their client ids; after that
    ``min_clients``, a share of them, are enough to start; in a simulation all must connect.
    ``round_timeout``: seconds after which an answer is too late, and
    ignored. ``min_results``: share of the clients of a round that must return valid results for it to count;
    after ``max_skipped`` skipped rounds in a row the run ends. ``over_select``: factor by which
    more clients are sampled than a round needs. ``retries``: how often a client with a transient failure is
    asked again within a round. A client that failed in ``exclude_after`` rounds in a row (0: never) is
    excluded from the next ``exclude_rounds``.

    ``ranks``: those of clients with an adapter of a lower rank than ``lora.r``, by client, or a list to draw
    each client's from. ``weights``: p_k by train examples, or equal for all. ``b_passing``: local
    tensors pass from client to client in turn, as in the code of arXiv:2410.01463; in simulation only, and
    no longer FedSA. ``clients_per_node``: clients that a node answers for, in one message (node p of a
    simulation has the clients from ``p * clients_per_node``). ``superlink``: HOST:PORT of the SuperLink that
    the nodes of a deployment connect to; its certificate is checked with ``root_certificates`` (null: those
    of the system), unless the connection is ``insecure``; null simulates. ``registry``: a file of the
    SuperLink's machine with the public key of each client's node (``fedsa_lora.deployment.registry``), to
    verify names; null: names are not verified.
    """

    rounds: Annotated[int, at_least(1), CHANGEABLE] = 12
    wait_seconds: Annotated[int, at_least(1), CHANGEABLE] = 120
    min_clients: Annotated[float, at_least(0, 1), CHANGEABLE] = 0.5
    round_timeout: Annotated[float | None, more_than(0), CHANGEABLE] = None
    min_results: Annotated[float, at_least(0, 1), CHANGEABLE] = 0.5
    max_skipped: Annotated[int, at_least(1), CHANGEABLE] = 3
    over_select: Annotated[float, at_least(1)] = 1.0
    retries: Annotated[int, at_least(0), CHANGEABLE] = 1
    exclude_after: Annotated[int, at_least(0), CHANGEABLE] = 3
    exclude_rounds: Annotated[int, at_least(1), CHANGEABLE] = 5
    ranks: dict[str, int] | list[int] | None = None
    weights: Literal["examples", "uniform"] = "examples"
    b_passing: bool = False
    clients_per_node: Annotated[int, at_least(1), CHANGEABLE] = 1
    superlink: Annotated[str | None, CHANGEABLE] = None
    root_certificates: Annotated[str | None, CHANGEABLE, SERVED] = None
    insecure: Annotated[bool, CHANGEABLE] = False
    registry: Annotated[str | None, CHANGEABLE, SERVED] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clients_per_node > 1 and self.clients % self.clients_per_node:
            raise ConfigError(
                f"clients_per_node is {self.clients_per_node}: expected a divisor of clients, {self.clients}"
            )
        if self.clients_per_node > 1 and self.registry is not None:
            raise ConfigError("a registry binds one client to each node: expected clients_per_node=1")

    @property
    def nodes(self) -> int:
        """The nodes that all clients are on."""
        return self.clients // self.clients_per_node

    def client_ranks(self, seed: int) -> dict[str, int]:
        """The rank of each client that has its own."""
        if self.ranks is None or isinstance(self.ranks, dict):
            return self.ranks or {}
        names = [str(number) for number in range(self.clients)]
        return {name: int(generator(seed, "rank", name).choice(self.ranks)) for name in names}

    def identity(self, run: RunConfig) -> dict[str, Any]:
        partition = {f.name: getattr(self, f.name) for f in fields(PartitionSettings)}
        found: dict[str, Any] = {"ranks": self.client_ranks(run.seed), "partition": partition}
        if self.b_passing:
            found["b_passing"] = True
        return found

    def check_deployed(self) -> None:
        if self.b_passing:
            raise ConfigError(
                f"federation.b_passing: {PASSED}, and possible in simulation only; start it with `fedsa-lora "
                "run`, or set it to false",
                sent="clients can pass B on in simulation only",
                key="federation.b_passing",
            )

    def clashes(self, run: RunConfig) -> Iterator[str]:
        if self.b_passing:
            yield from self._of_passing(run)
        if self.superlink is None:
            yield from self._of_simulation()
        else:
            yield from self._of_deployment(run)
        if self.ranks is not None:
            yield from self._of_ranks(run, self.ranks)

    def _of_passing(self, run: RunConfig) -> Iterator[str]:
        if self.ranks is not None:
            yield "federation.b_passing: a client cannot use a B of another rank; expected ranks=null"
        if not run.split.by_role or "local" not in run.split.words().values():
            yield (
                "federation.b_passing: no tensor is always local, so none can be passed on; expected "
                "split=share_a"
            )

    def _of_simulation(self) -> Iterator[str]:
        if self.own:
            yield "partition=own: simulated clients bring no data; choose federation=deployment"
        if self.insecure or self.root_certificates:
            yield "federation.insecure, root_certificates: they belong to federation.superlink; set it"
        if self.registry:
            yield "federation.registry: simulated nodes have no keys; expected registry=null"

    def _of_deployment(self, run: RunConfig) -> Iterator[str]:
        if fault := run_name_fault(run.run_dir.name):
            yield fault
        if self.registry and self.insecure:
            yield (
                "federation.registry: without TLS a SuperLink does not authenticate nodes, so neither "
                "their keys nor their names are verified; expected federation.insecure=false, or "
                "registry=null"
            )
        if not self.own:
            return
        if not isinstance(run.task, FileReading) and not run.task.by_client:
            kind = type(run.task).__name__
            yield f"partition=own: {kind} reads no files; expected a task of texts or of images"
        if self.label_meaning != "common":
            yield "partition=own: classes are matched by name; expected federation.label_meaning=common"
        if self.ranks is not None:
            yield "partition=own: ranks are given by client number; expected federation.ranks=null"

    def _of_ranks(self, run: RunConfig, ranks: dict[str, int] | list[int]) -> Iterator[str]:
        if not run.strategy.mixes_ranks:
            yield (
                f"federation.ranks: {run.strategy.name} cannot mix adapters of different ranks; expected "
                "strategy=flora, flexlora or another that combines products"
            )
        if run.downlink is not None:
            yield "federation.ranks: broadcasts differ by rank, so they cannot be encoded: set downlink=whole"
        if run.lora is None or run.lora.variant == "vera":
            yield "federation.ranks: this model has no A and B of a rank to limit"
            return
        numbers = ranks.values() if isinstance(ranks, dict) else ranks
        wrong = sorted({rank for rank in numbers if not 1 <= rank <= run.lora.r})
        if wrong or not ranks:
            yield f"federation.ranks: {wrong or 'none'}; expected ranks from 1 to lora.r={run.lora.r}"
        clients = {str(number) for number in range(self.clients)}
        if isinstance(ranks, dict) and (unknown := sorted(ranks.keys() - clients)):
            yield f"federation.ranks: no clients {unknown}; there are 0 to {self.clients - 1}"
