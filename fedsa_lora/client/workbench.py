"""The common objects of all clients of a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.client.last_used import LastUsed
from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.exchange.codec import Codec, Dense
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.exchange.split import RoleSplit, SplitPolicy
from fedsa_lora.exchange.stages import Stages, upload
from fedsa_lora.exchange.witness import Sketch
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.cohort import Cohort
from fedsa_lora.learning.cohort.passes import ON_CPU
from fedsa_lora.learning.job import Job, OneByOne, Outcome, Trainer, settled
from fedsa_lora.learning.personalisation import Personalisation
from fedsa_lora.learning.requests import Requests
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.together import Together
from fedsa_lora.learning.vocabulary import token_tensors
from fedsa_lora.tasks.fingerprint import fingerprint_of
from fedsa_lora.tasks.task import ClientData, Examples, Referring, Task

KEPT = 128 * 2**20  # bytes of encoded examples that stay in memory
KEPT_PRIVATE = 64 * 2**20  # bytes of sketches of clients' own tensors that do


@dataclass(frozen=True)
class Alone:
    """The reference a client is compared with: the same training without a federation."""

    split: RoleSplit
    settings: TrainSettings
    rounds: int


@dataclass(frozen=True)
class Workbench:
    """Common objects of all clients of a process: nothing here belongs to a client.

    The backbone is resident; ``model`` holds whatever client was served last and is overwritten
    completely before it is used for another. ``codec`` is for uploads, ``downlink`` for broadcasts
    that are the change since the last one. ``ranks`` are those of the clients that have an adapter of
    a lower rank than the model. ``counted``: clients report how many train examples they have of each
    class, where they share a head. ``keep_trained``: a client keeps what may be shared as a round's
    training left it, before aggregation, which no method needs. ``cohort``: the jobs of so many clients are
    done in one pass, or in several of at most so many ``tokens``.
    """

    task: Task
    model: AdapterModel
    split: SplitPolicy
    settings: TrainSettings
    seed: int
    personalisation: Personalisation = field(default_factory=Personalisation)
    requests: Requests = field(default_factory=Requests)
    codec: Codec = field(default_factory=Dense)
    downlink: Codec | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    counted: bool = False
    head_row_norm: float | None = None
    part: Literal["test", "validation"] = "test"
    alone: Alone | None = None
    keep_trained: bool = False
    cohort: int = 1
    tokens: int = ON_CPU

    @property
    def primary(self) -> Measure:
        """The measure that clients are compared by."""
        return self.task.measures[0]

    def layout(self, client: str) -> Layout:
        """Every tensor of a client's adapter and head, at the client's rank."""
        return self.model.layout.limited(self.ranks.get(client))

    def pool(self, client: str) -> Layout:
        """The tensors of a client that may be shared."""
        layout = self.layout(client)
        return layout.select(self.split(layout).shared)

    @cached_property
    def trainer(self) -> Trainer:
        """Does every training and every measurement of this process."""
        if self.cohort > 1:
            return Together(Cohort(self.model, self.task, self.cohort, self.tokens))
        return Together(OneByOne(self.model, self.task))

    def outcome(self, job: Job) -> Outcome:
        """The outcome of a job alone. Raises TrainingError where it cannot be done."""
        return settled(*self.trainer([job]))

    @cached_property
    def stages(self) -> Stages:
        """Stages of an upload."""
        return upload(self.codec, self.settings.max_update_norm)

    @cached_property
    def initial(self) -> dict[str, NDArray[np.float32]]:
        return self.model.initial(self.seed, self.head_row_norm)

    @cached_property
    def of_tokens(self) -> frozenset[str]:
        """The tensors with values for each token, see ``token_tensors``."""
        return token_tensors(self.model)

    @cached_property
    def data_digest(self) -> str:
        """Of the rows that this process has; nothing where its task does not know them."""
        found = fingerprint_of(self.task)
        return "" if found is None else found.digest

    @cached_property
    def data(self) -> Callable[[str], ClientData]:
        """The data of a client. Those of the clients that were served last stay in memory, encoded."""
        held: LastUsed[ClientData] = LastUsed(lambda data: data.bytes, KEPT)
        return lambda client: held(client, partial(self._load, client))

    def _load(self, client: str) -> ClientData:
        data, task = self.task.load_client(client), self.task
        if not isinstance(task, Referring):
            return data
        parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
        return replace(data, **{name: self._referred(task, part) for name, part in parts.items()})

    def _referred(self, task: Referring, examples: Examples) -> Examples:
        """Examples with what the model makes of them at the common start."""
        asked = (examples,) if len(examples) else ()
        job = Job(
            values=self.initial, trained=frozenset(), examples=examples, settings=self.settings, asked=asked
        )
        found = self.outcome(job).answers
        return task.referred(examples, found[0] if found else np.zeros((0, 0), np.float32))

    @cached_property
    def private(self) -> LastUsed[Sketch]:
        """Sketches of the generations that were searched for last, by the files that they stand in."""
        return LastUsed(lambda sketch: sketch.keys.nbytes, KEPT_PRIVATE)
