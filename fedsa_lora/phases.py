"""Phases of a run that learns, unlearns and recovers, and the requests to its clients in each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Phase = Literal["learn", "unlearn", "recover"]


class Asked(StrEnum):
    """Requests to a client other than its plain training."""

    RETAIN = "retain"  # train without the examples that are to be forgotten
    FORGET = "forget"  # unlearn them
    STILL = "still"  # answer with no change, so that the client keeps its weight in the mean


@dataclass(frozen=True)
class Phases:
    """The rounds of each phase, one phase after the other, and the clients that are to forget.

    ``others``: what the other clients do while the targets unlearn, "still" or "train". Without rounds to
    unlearn and with ``forgotten``, the targets never see what others are to forget: the retrained reference.
    """

    learn: int = 0
    unlearn: int = 0
    recover: int = 0
    targets: frozenset[str] = frozenset()
    others: Literal["still", "train"] = "still"
    forgotten: bool = False

    def of(self, round_: int) -> Phase:
        """The phase of a round, of which the first is 1."""
        if round_ <= self.learn or not self.unlearn:
            return "learn"
        return "unlearn" if round_ <= self.learn + self.unlearn else "recover"

    def begins(self, round_: int) -> bool:
        """True of the first round of a phase after the first."""
        return round_ > 1 and self.of(round_) != self.of(round_ - 1)

    def asked(self, round_: int, client: str) -> Asked | None:
        """The request to a client in a round; None is its plain training."""
        phase, target = self.of(round_), client in self.targets
        if phase == "unlearn":
            if target:
                return Asked.FORGET
            return Asked.STILL if self.others == "still" else None
        if target and (self.forgotten or phase == "recover"):
            return Asked.RETAIN
        return None
