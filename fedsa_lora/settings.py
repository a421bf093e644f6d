"""Settings as frozen dataclasses, and the run configuration that holds them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.exchange.codec import Codec
from fedsa_lora.exchange.split import Share, SplitPolicy
from fedsa_lora.federation import FederationSettings
from fedsa_lora.group import (
    CHANGEABLE,
    FILES,
    IDENTITY,
    READ,
    TEXT,
    WRITTEN,
    Group,
    Keys,
    Target,
    at,
    at_least,
    held,
    hints_of,
    marked,
    more_than,
)
from fedsa_lora.learning.cut.settings import Cut
from fedsa_lora.learning.personalisation import Personalisation
from fedsa_lora.learning.settings import LoraSettings, TrainSettings
from fedsa_lora.learning.unlearning import Unlearning
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.backdoor import Backdoor
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.task import Task
from strategies.plans.grouping import Clusters
from strategies.round.bounds import Bounds
from strategies.rules.inner import Inner

if TYPE_CHECKING:
    from fedsa_lora.learning.adapters import AdapterModel

EXCHANGE = Target(("fedsa_lora.exchange.",))
LEARNING = Target(("fedsa_lora.learning.",))
TASKS = Target(("fedsa_lora.tasks.",))
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")

LATER = {  # groups that runs recorded before them have not: what these were
    "unlearning": {"_target_": "fedsa_lora.learning.unlearning.Unlearning", "targets": [0]},
    "cut": None,
}


@dataclass(frozen=True)
class HeadSettings(Group):
    """Settings of the classifier; ``row_norm`` sets the norm of its random rows at the start.

    A ``soft`` head is local by ``degree``: 0 shared, 1 local. ``count_weighted``: a shared head is averaged
    row by row with the clients' class counts, which reveals to the server how many examples of each
    class a client has.
    """

    policy: Literal["shared", "local", "frozen", "soft"]
    row_norm: Annotated[float | None, more_than(0)] = None
    degree: Annotated[float | None, at_least(0, 1)] = None
    count_weighted: bool = True

    def __post_init__(self) -> None:
        if (self.policy == "soft") != (self.degree is not None):
            raise ConfigError("degree is that of a soft head: give it with policy=soft, and only then")

    @property
    def share(self) -> Share:
        """As a split takes it."""
        return self.degree if self.policy == "soft" and self.degree is not None else self.policy  # type: ignore[return-value]

    @property
    def counted(self) -> bool:
        """True where clients report their class counts, by which a shared head is averaged."""
        return self.policy in ("shared", "soft") and self.count_weighted

    def clashes(self, run: RunConfig) -> Iterator[str]:
        modules = getattr(run.task, "head", None)
        if not isinstance(modules, list):
            return  # a task that finds the head of its model itself
        named = "modules_to_save of LoraConfig (task.head)"
        if modules and self.policy == "frozen":
            yield (
                f"head=frozen: {named} lists {listing(modules)}, but head=frozen would not train it; "
                "expected head=local or head=shared, or no modules to save"
            )
        elif modules and self.row_norm is not None:
            yield "head.row_norm: the head starts as the user's model has it; expected head.row_norm=null"
        elif not modules and self.policy in ("shared", "soft"):
            yield f"head={self.policy}: the model has no head; name its modules by {named}, or set head=local"


@dataclass(frozen=True)
class EvaluationSettings(Group):
    """All clients are evaluated every ``every`` rounds (0: never between) and at the end.

    ``before``: at the end also measure each client before aggregation, with ``before_each`` whenever it is
    evaluated. ``local_only``: at the end, train
    each client alone for comparison, with its own learning rate where one is given. ``part``:
    "validation" measures on held-out train examples, to select hyperparameters.
    """

    part: Literal["test", "validation"] = "test"
    every: Annotated[int, at_least(0)] = 1
    before: bool = True
    before_each: bool = False
    local_only: bool = True
    local_only_lr: Annotated[float | None, more_than(0)] = None
    local_only_head_lr: Annotated[float | None, more_than(0)] = None

    def clashes(self, run: RunConfig) -> Iterator[str]:
        if self.part == "validation" and run.federation.validation_examples == 0:
            yield "evaluation.part=validation needs federation.validation_examples of at least 1"
        if self.before_each and not self.before:
            yield "evaluation.before_each needs evaluation.before=true"


@dataclass(frozen=True)
class MachineSettings(Group):
    """Resources of one simulated client; ``gpus_per_client`` null shares one GPU when there is one.

    ``device``: "cpu", "cuda" (all GPUs), one of them as "cuda:0", or "auto": CUDA if available. It is the
    number of a GPU among those that CUDA shows to the command, also where Ray has actors use it.

    ``engine``: "inprocess" runs a simulation on CPU in one process for each core, "ray" in Flower's
    simulation runtime; "auto" takes the former on CPU and the latter on a GPU. Results are bit-identical.

    ``cohort``: clients, adjacent by id, that are trained in one pass over their tokens; null: as many as
    leave work for every process, at most sixteen, where the engine is "inprocess", decided once for a run,
    and one elsewhere. The size changes results by rounding only.
    """

    engine: Literal["auto", "inprocess", "ray"] = "auto"
    device: str = "auto"
    cpus_per_client: Annotated[int, at_least(1)] = 1
    gpus_per_client: Annotated[float | None, at_least(0)] = None
    threads: Annotated[int, at_least(1)] = 1
    cohort: Annotated[int | None, at_least(1, 1024)] = None

    @staticmethod
    def contradictions(node: Mapping[str, Any]) -> Iterator[str]:
        device = node.get("device")
        if isinstance(device, str) and not _DEVICE.fullmatch(device):
            yield f"device={device}: expected auto, cpu, cuda, or one GPU such as cuda:0"
        if "attention" in node:
            yield "attention: it is a setting of the model; set model.attention"


@dataclass(frozen=True)
class RunSettings(Group):
    """Settings of what a run writes, and where. ``store`` null keeps the clients' state in the run directory.

    ``keep_messages`` stores every serialised reply of every client with its state, for audits; on a node
    only where its node config allows it.
    ``keep_trained``: clients also keep, in their own folders, what they trained in each round before it
    was aggregated, for the analysis of A and B (``fedsa_lora.runs.load_run``).
    ``report``: write adapters, figures and the report at the end; without, as for sweeps, only the
    summary and the rows.
    ``resume``: resume the run in ``dir`` after its last complete round; ``allow_changed_data``: also when the
    data have changed since.
    """

    dir: Annotated[str | None, WRITTEN] = None
    store: Annotated[str | None, WRITTEN] = None
    keep_generations: Annotated[int, at_least(1, 100)] = 3  # each reply is searched for the values of all
    keep_messages: bool = False
    keep_trained: bool = False
    report: bool = True
    resume: bool = False
    allow_changed_data: bool = False


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run; equal settings give bit-identical results on one CPU thread.

    Each field is a key of ``conf/run.yaml``. A new group is one more field here; code that loops over groups
    uses its marks and the methods of its class, see ``Group``.
    """

    name: str
    title: Annotated[str, TEXT]
    description: str
    seed: Annotated[int, at_least(0), IDENTITY]
    task: Annotated[
        Task,
        TASKS,
        IDENTITY,
        Keys(READ, "dataset"),
        Keys(FILES, "files"),
        Keys(
            TEXT, "text", "text_pair", "image", "label", "group", "prompt", "answer", "rejected", "messages"
        ),
    ]
    model: Annotated[ModelSettings, IDENTITY]
    lora: Annotated[LoraSettings | None, IDENTITY]
    split: Annotated[SplitPolicy, EXCHANGE, IDENTITY]
    head: Annotated[HeadSettings, IDENTITY]
    personalisation: Annotated[Personalisation, LEARNING, IDENTITY]
    unlearning: Annotated[Unlearning, LEARNING, CHANGEABLE]
    cut: Cut | None
    codec: Annotated[Codec, EXCHANGE, IDENTITY]
    downlink: Annotated[Codec | None, EXCHANGE, IDENTITY]
    clusters: Clusters | None
    attack: Annotated[Backdoor | None, IDENTITY]
    train: TrainSettings
    strategy: Inner
    federation: FederationSettings
    bounds: Bounds
    evaluation: Annotated[EvaluationSettings, CHANGEABLE]
    machine: Annotated[MachineSettings, CHANGEABLE]
    run: Annotated[RunSettings, CHANGEABLE]
    resolved: dict[str, Any] = field(repr=False)

    @property
    def whole(self) -> RunConfig:
        """The same with the model in one piece, for work on what a run left."""
        return replace(self, cut=None)

    def holds(self, name: str) -> bool:
        """True of a tensor of the whole model that a client holds: of all, unless it is cut."""
        return self.cut is None or self.cut.of_client(name)

    def at_client(self, layout: Layout) -> Layout:
        """The tensors of the whole model that a client holds."""
        return layout.select(filter(self.holds, layout.names))

    @cached_property
    def run_dir(self) -> Path:
        return Path(self.run.dir or f"runs/{self.name}").expanduser().resolve()

    @cached_property
    def store_dir(self) -> Path:
        return Path(self.run.store).expanduser().resolve() if self.run.store else self.run_dir / "clients"

    @cached_property
    def experiment(self) -> str:
        """Digest, as 16 hex digits, of what must be equal for a client's stored state to be of use."""
        parts = {key: at(self.resolved, key) for key in marked(RunConfig, IDENTITY)}
        for group in self.groups:
            parts |= group.identity(self)
        if self.resolved["cut"] is not None:  # also of ``whole``: its clients are those of the parts
            parts["cut"] = self.resolved["cut"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def groups(self) -> list[Group]:
        """The groups that are chosen."""
        values = [getattr(self, f.name) for f in fields(self)]
        return [value for value in values if isinstance(value, Group)]

    def describe(self) -> dict[str, str]:
        """The lines of the plan, by title, of all groups."""
        lines: dict[str, str] = {}
        for name, hint in hints_of(RunConfig).items():
            group, kind = getattr(self, name), held(hint)
            if isinstance(group, Group):
                lines |= group.describe()
            elif group is None and isinstance(kind, type) and issubclass(kind, Group):
                lines |= kind.off
        return lines

    def describe_model(self, model: AdapterModel) -> dict[str, str]:
        """The lines of the plan on the model, by title, of all groups."""
        return {title: line for group in self.groups for title, line in group.describe_model(model).items()}
