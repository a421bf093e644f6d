"""The common objects of all clients of a process whose model is cut."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Self

from fedsa_lora.client.workbench import Workbench
from fedsa_lora.exchange.step import StepFormat
from fedsa_lora.learning.cut.parts import step_format
from fedsa_lora.learning.cut.settings import Cut

if TYPE_CHECKING:
    from fedsa_lora.client.session import Session


@dataclass(frozen=True, kw_only=True)
class CutBench(Workbench):
    """A workbench whose ``model`` is a client's part of one that is cut.

    ``step_format`` is that of its messages, ``elsewhere`` are the tensors that are trained in the server's
    part, and ``sessions`` the exchanges that this process takes part in, by client.
    """

    cut: Cut
    step_format: StepFormat
    elsewhere: frozenset[str]
    sessions: dict[str, Session] = field(default_factory=dict)

    @classmethod
    def of(cls, bench: Workbench, cut: Cut, trained: Collection[str]) -> Self:
        """The same bench with what a cut needs besides; ``trained`` are all tensors that are, of both
        sides."""
        return cls(
            **{f.name: getattr(bench, f.name) for f in fields(bench)},
            cut=cut,
            step_format=step_format(bench.model.module, cut, bench.task, bench.settings),
            elsewhere=frozenset(name for name in trained if not cut.of_client(name)),
        )
