"""Splits of which the server decides from what the clients report, round by round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, Role
from fedsa_lora.exchange.split import Factor, Score, Share, SplitPolicy

if TYPE_CHECKING:
    from fedsa_lora.settings import RunConfig


@dataclass(frozen=True, kw_only=True)
class Importance(SplitPolicy):
    """Share the tensors that matter most for training; keep the rest of the pool, and all that is not in it.

    ``score``: ``gradient`` mean |g|, ``fisher`` mean g^2 (diagonal empirical Fisher), ``taylor`` mean
    |theta g|, over the client's own training steps but the first. Scores are divided by the mean of
    tensors of the same kind and mapped by rank within A and within B to (0, 1): ``threshold`` 0.5
    shares the upper half, 0 all, above 1 nothing. ``threshold`` "heterogeneity" follows the mean
    distance (1 - cosine) / 2 between clients' updates: the more they disagree, the less is shared.

    ``pool``: the factors that may be shared at all. ``budget``: most bytes, at 4 a value,
    of what a round shares of the pool, null for no limit. ``ema``: weight of the scores of
    the rounds before. ``hysteresis``: a tensor changes side after so many rounds in a row on the other
    side of the threshold by more than ``margin``. ``scope``: one split for the federation, or one for
    each ``client`` from its own scores; a tensor is then averaged over those who share it.
    """

    adaptive = True
    by_importance = True

    score: Score = "gradient"
    pool: tuple[Factor, ...] = ("A",)
    threshold: float | Literal["heterogeneity"] = 0.5
    budget: int | None = None
    ema: float = 0.5
    hysteresis: int = 1
    margin: float = 0.0
    scope: Literal["federation", "client"] = "federation"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = {
            "ema": (0 <= self.ema < 1, "at least 0 and below 1"),
            "hysteresis": (self.hysteresis >= 1, "at least 1 round"),
            "margin": (0 <= self.margin < 1, "at least 0 and below 1"),
            "budget": (self.budget is None or self.budget > 0, "a number of bytes above 0"),
            "threshold": (isinstance(self.threshold, str) or self.threshold >= 0, "at least 0"),
            "pool": (len(self.pool) > 0, "A, B or both"),
        }
        faults = [
            f"{key}={getattr(self, key)}: expected {what}" for key, (ok, what) in checks.items() if not ok
        ]
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def by_client(self) -> bool:
        return self.scope == "client"

    def scoring(self, pool: Layout) -> tuple[Score, tuple[str, ...]] | None:
        return self.score, scored(self, pool).names

    def clashes(self, run: RunConfig) -> Iterator[str]:
        yield from super().clashes(run)
        if run.train.steps == 1:
            yield (
                "split: importance is not measured in the first local step, where the gradient of A "
                "vanishes; expected train.steps of at least 2"
            )

    def of(self, role: Role) -> Share:
        if role in ("head", "base"):
            return self.head if role == "head" else "frozen"
        return "shared" if role in self.pool else "local"

    def words(self) -> dict[str, str]:
        return super().words() | dict.fromkeys(self.pool, f"shared where its {self.score} score is high")


@dataclass(frozen=True, kw_only=True)
class LeastVariance(SplitPolicy):
    """Share A of the ``count`` layers in which clients differ least; keep A of the others, and every B.

    All A are shared in the first ``measure`` rounds and every ``again`` rounds (0: never), in which the
    variance between the clients' updates is measured, relative to their mean square.
    """

    adaptive = True

    count: int = 1
    measure: int = 1
    again: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1 or self.measure < 1 or self.again < 0:
            raise ConfigError(
                f"count={self.count}, measure={self.measure}, again={self.again}: expected 1, 1 and 0 or more"
            )

    def clashes(self, run: RunConfig) -> Iterator[str]:
        yield from super().clashes(run)
        depth = run.model.depth  # None: told by the plan, which makes the model without its weights
        if depth is not None and self.count > depth:
            yield f"split.count={self.count}: the model has {depth} layers; expected at most as many"

    def of(self, role: Role) -> Share:
        return {"A": "shared", "B": "local", "head": self.head, "base": "frozen"}[role]

    def words(self) -> dict[str, str]:
        return super().words() | {"A": f"shared in the {self.count} layers with the least variance"}


def scored(policy: Importance, pool: Layout) -> Layout:
    """The tensors of what may be shared that are given scores: the factors, not a shared head."""
    return pool.select(spec.name for spec in pool if spec.role in policy.pool)
