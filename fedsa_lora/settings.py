"""What can be set, as frozen dataclasses, and the configuration that they make up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.codec import Codec
from fedsa_lora.exchange.split import Share, SplitPolicy
from fedsa_lora.learning.personalisation import Personalisation
from fedsa_lora.learning.settings import LoraSettings, TrainSettings
from fedsa_lora.seeds import generator
from fedsa_lora.tasks.backdoor import Backdoor
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.task import Task
from strategies.bounds import Bounds
from strategies.grouping import Clusters

PASSED = "B is passed from client to client: not FedSA"


@dataclass(frozen=True)
class Heading:
    """What a run is called, and the seed of everything that it draws."""

    name: str
    title: str
    description: str
    seed: int


@dataclass(frozen=True)
class HeadSettings:
    """What becomes of the classifier; ``row_norm`` sets the norm of its random rows at the start.

    A ``soft`` head is local by ``degree``: 0 shared, 1 local. ``count_weighted``: a head that is shared
    is averaged row by row with the clients' class counts, which tells the server how many examples
    of each class a client has.
    """

    policy: Literal["shared", "local", "frozen", "soft"]
    row_norm: float | None = None
    degree: float | None = None
    count_weighted: bool = True

    def __post_init__(self) -> None:
        if (self.policy == "soft") != (self.degree is not None):
            raise ConfigError("degree is that of a soft head: give it with policy=soft, and only then")

    @property
    def share(self) -> Share:
        """As a split takes it."""
        return self.degree if self.policy == "soft" and self.degree is not None else self.policy  # type: ignore[return-value]


@dataclass(frozen=True)
class FederationSettings(PartitionSettings):
    """Who takes part with which data, and for how long.

    ``wait_seconds``: how long to wait for all clients to connect and to say who they are; after that
    ``min_clients``, a share of them, are enough to start; simulated clients are waited for without a limit.
    ``round_timeout``: seconds after which a client that was asked is late, and
    ignored. ``min_results``: share of the clients that a round needs which must answer well for it to count;
    after ``max_skipped`` rounds in a row that do not, the run ends. ``over_select``: how many times the
    clients that a round needs are sampled. ``retries``: how often a client that failed for a passing reason
    is asked again within a round. A client that failed in ``exclude_after`` rounds in a row (0: never) is
    left out of the next ``exclude_rounds``.

    ``ranks``: those of clients with an adapter of a lower rank than ``lora.r``, by client, or a list to draw
    each client's from. ``weights``: p_k by train examples, or the same for all. ``b_passing``: what is
    private passes from client to client in turn, as in the code of arXiv:2410.01463; in simulation only, and
    no longer FedSA. ``clients_per_node``: clients that a node answers for, in one message (node p of a
    simulation has the clients from ``p * clients_per_node``). ``superlink``: HOST:PORT of the SuperLink that
    the nodes of a deployment connect to; its certificate is checked with ``root_certificates`` (null: those
    of the system), unless the connection is ``insecure``; null simulates. ``registry``: a file of the
    SuperLink's machine with the public key of each client's node (``fedsa_lora.deployment.registry``), by
    which names are checked; null: a name is a claim.
    """

    rounds: int = 12
    wait_seconds: int = 120
    min_clients: float = 0.5
    round_timeout: float | None = None
    min_results: float = 0.5
    max_skipped: int = 3
    over_select: float = 1.0
    retries: int = 1
    exclude_after: int = 3
    exclude_rounds: int = 5
    ranks: dict[str, int] | list[int] | None = None
    weights: Literal["examples", "uniform"] = "examples"
    b_passing: bool = False
    clients_per_node: int = 1
    superlink: str | None = None
    root_certificates: str | None = None
    insecure: bool = False
    registry: str | None = None

    def __post_init__(self) -> None:
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
        """The rank of each client that has one of its own."""
        if self.ranks is None or isinstance(self.ranks, dict):
            return self.ranks or {}
        names = [str(number) for number in range(self.clients)]
        return {name: int(generator(seed, "rank", name).choice(self.ranks)) for name in names}


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

    ``keep_messages`` writes every serialised reply of every client beside its state, for audits; a node does
    where its node config allows it.
    ``keep_trained``: clients also keep, in their own folders, what they trained in each round before it
    was aggregated, for the analysis of A and B (``fedsa_lora.runs.load_run``).
    ``report``: write adapters, figures and the report at the end; without, as sweeps want it, only
    the summary and the rows.
    ``resume``: go on with the run that ``dir`` holds, after its last whole round; ``allow_changed_data``:
    also when the data are not those that it was made on.
    """

    dir: str | None = None
    store: str | None = None
    keep_generations: int = 3
    keep_messages: bool = False
    keep_trained: bool = False
    report: bool = True
    resume: bool = False
    allow_changed_data: bool = False


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
    split: SplitPolicy
    head: HeadSettings
    personalisation: Personalisation
    codec: Codec
    downlink: Codec | None
    clusters: Clusters | None
    attack: Backdoor | None
    train: TrainSettings
    strategy: dict[str, Any]
    federation: FederationSettings
    bounds: Bounds
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
