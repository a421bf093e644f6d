"""Chooses by variance: later rounds share the layers in which clients differ least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import SplitError
from fedsa_lora.exchange.adaptive import LeastVariance
from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.exchange.layers import blocks_of
from strategies.rules.updates import Together, of_tensor

Values = NDArray[np.float64]  # (blocks,), in the order of their numbers
State = dict[str, NDArray[np.float64]]


class ByVariance:
    """The choice of each round by ``LeastVariance``: all tensors of the pool while it is measured, then
    those of the ``count`` blocks with the smallest relative variance, of equal ones the first.

    Raises SplitError when there are fewer blocks than ``count``.
    """

    scores = 0  # that each upload brings

    def __init__(self, policy: LeastVariance, pool: Layout) -> None:
        self._policy, self.pool = policy, pool
        of_layer = blocks_of(pool)
        self._blocks: dict[int, list[str]] = {number: [] for number in sorted(set(of_layer.values()))}
        for spec in pool:
            if spec.layer in of_layer:
                self._blocks[of_layer[spec.layer]].append(spec.name)
        if policy.count > len(self._blocks):
            raise SplitError(
                f"split.count={policy.count}: the model has {len(self._blocks)} layers with adapters to share"
            )
        self._variance: Values | None = None  # (blocks,), summed over the first rounds
        self._next = 1

    def learn(self, round_: int, together: Together) -> dict[str, Any]:
        """Take in the updates of a round, the first of which is 1, among the values of the pool. Variances of
        the first rounds are added up; those measured again replace them. Without a tensor that two clients
        of one mean shared nothing changes. Returns nothing for the row of the round."""
        self._next = round_ + 1
        if not self._measures(round_):
            return {}
        found = relative_variance(self.pool, together)
        if not found:
            return {}
        variance = np.array([_mean_of(found, names) for names in self._blocks.values()])
        if self._variance is not None and round_ <= self._policy.measure:
            variance += self._variance
        self._variance = variance
        return {}

    def shared(self, client: str) -> frozenset[str]:
        """The tensors that every client is asked to share in the next round."""
        if self._measures(self._next) or self._variance is None:
            return frozenset(self.pool.names)
        order = np.argsort(self._variance, kind="stable")[: self._policy.count]
        blocks = list(self._blocks.values())
        return frozenset(name for i in order for name in blocks[i])

    def state(self) -> State:
        """All that is remembered: ``next`` (1,), a round, and ``variance`` (blocks,) once it is measured."""
        measured = {} if self._variance is None else {"variance": self._variance.copy()}
        return {"next": np.array([float(self._next)]), **measured}

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Resume from a ``state()``. Raises SplitError when it is of another number of blocks."""
        variance = state.get("variance")
        if variance is not None and variance.shape != (len(self._blocks),):
            raise SplitError(f"variances of {variance.size} layers, but the model has {len(self._blocks)}")
        self._variance = None if variance is None else variance.copy()
        self._next = int(state["next"][0])

    def _measures(self, round_: int) -> bool:
        since, again = round_ - self._policy.measure, self._policy.again
        return since <= 0 or (again > 0 and since % again == 0)


def relative_variance(pool: Layout, together: Together) -> dict[str, float]:
    """By tensor that at least two clients of one mean shared, the variance between the clients of each mean
    over the mean square of all of them, from 0 (all the same, or all zero) to 1 (a mean of zero)."""
    found = {}
    for spec in pool:
        spread, square, several = 0.0, 0.0, False
        for updates in together:
            total, clients, own = np.zeros(spec.size), 0, 0.0
            for update in of_tensor(pool, updates, spec.name):
                total, clients, own = total + update, clients + 1, own + float(update @ update)
            if clients > 1:
                apart = (update - total / clients for update in of_tensor(pool, updates, spec.name))
                spread += sum(float(part @ part) for part in apart)
                square, several = square + own, True
        if several:
            found[spec.name] = spread / square if square else 0.0
    return found


def _mean_of(found: Mapping[str, float], names: Sequence[str]) -> float:
    """Of the tensors that were measured; infinite without any, so that the block comes last."""
    values = [found[name] for name in names if name in found]
    return fmean(values) if values else math.inf
