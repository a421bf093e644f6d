"""A client's work of one round, and the jobs that can be made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fedsa_lora.exchange.arrays import Layout, NamedArrays
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.seeds import generator, torch_seed
from fedsa_lora.tasks.task import Examples

if TYPE_CHECKING:
    from fedsa_lora.learning.importance import Scoring
    from fedsa_lora.learning.job import Job

Augment: TypeAlias = Callable[[Examples, np.random.Generator], Examples]


@dataclass(frozen=True, kw_only=True)
class LocalRound:
    """A client's work of one round: what its model starts from, and data to train it on.

    ``values`` are all tensors of ``layout``, ``merged`` what is in the frozen weights besides, by layer.
    ``anchor`` are the common values of what is shared, ``mu`` the weight of FedProx's term towards them,
    ``others`` the common values without this client's own part in them.
    ``scoring`` asks for scores of the training that is shared from. ``augment`` changes examples a little
    before they are trained on.
    """

    layout: Layout
    values: NamedArrays
    examples: Examples
    settings: TrainSettings
    trained: frozenset[str]
    seed: int
    client: str
    round: int
    merged: NamedArrays = field(default_factory=dict)
    anchor: NamedArrays = field(default_factory=dict)
    mu: float = 0.0
    others: NamedArrays = field(default_factory=dict)
    scoring: Scoring | None = None
    augment: Augment | None = None

    @cached_property
    def augmented(self) -> Examples:
        """The examples as they are trained on in this round: the same for all of its jobs."""
        if self.augment is None:
            return self.examples
        return self.augment(self.examples, generator(self.seed, "augment", self.client, self.round))

    def still(self, **changes: Any) -> Job:
        """A job that trains nothing: the model as the round began, but for fields that are given.

        Its outcome has values as they stand in a model, which rounds those that are a difference from
        pretrained weights.
        """
        from fedsa_lora.learning.job import Job

        job = Job(
            values=self.values,
            merged=self.merged,
            trained=self.trained,
            examples=self.examples,
            settings=self.settings,
        )
        return replace(job, **changes)

    def plain(self, **changes: Any) -> Job:
        """The training of FedAvg, with FedProx's term where there is one."""
        return self.job(mu=self.mu, anchor=self.anchor, scoring=self.scoring, **changes)

    def job(self, *, steps: int | None = None, part: str = "", **changes: Any) -> Job:
        """A training of a round's length, or of ``steps``. Every job for the same ``part`` of the round has
        the same batches and dropout."""
        from fedsa_lora.learning.training import round_batches

        key: tuple[str | int, ...] = (self.client, self.round, *([part] if part else []))
        settings = replace(self.settings, steps=steps, epochs=None) if steps else self.settings
        batches = round_batches(self.examples.lengths, settings, generator(self.seed, "batches", *key))
        dropout = torch_seed(self.seed, "dropout", *key)
        return self.still(
            examples=self.augmented, settings=settings, batches=batches, dropout=dropout, **changes
        )
