"""What the next round shares, decided from what clients reported in the rounds before."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median_low

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import SplitError, WireError
from fedsa_lora.exchange.adaptive import Importance, LeastVariance
from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.exchange.layers import blocks_of
from strategies.updates import Update

Values = NDArray[np.float64]  # (tensors,), in the order of the pool
State = dict[str, NDArray[np.float64]]

_BYTES = 4  # of a value, as a budget counts
_DIGITS = 12  # of a disagreement: orthogonal updates are exactly 0.5, whatever the order of a sum
_MOST = float(np.finfo(np.float32).max)  # that a score counts for: sums of such do not overflow
_SOUND = 10.0  # medians of a round that the scores of one client add up to at most
_FEDERATION = ""  # under which the scores of scope "federation" are kept


@dataclass(frozen=True)
class _Memory:
    """Of one split, by tensor: smoothed scores, whether it is on the shared side of the threshold, and
    for how many rounds in a row its level was on the other side."""

    scores: Values
    side: NDArray[np.bool_]
    away: NDArray[np.int64]


class ImportancePlan:
    """The split of each round by ``Importance``: shared are the tensors whose level reaches the threshold.

    ``pool``: the tensors that are scored, and no others. Until scores are known all of it is shared, or
    nothing with a threshold of 1 or more. Of what reaches the threshold, the budget takes the highest
    levels that fit, then names in order.

    Raises SplitError when not one tensor of the pool fits the budget.
    """

    def __init__(self, policy: Importance, pool: Layout) -> None:
        self._policy, self._pool = policy, pool
        self._roles = _groups([spec.role for spec in pool])
        self._kinds = _groups([(spec.role, _without_numbers(spec.layer)) for spec in pool])
        self._bytes = [_BYTES * spec.size for spec in pool]
        if policy.budget is not None and self._bytes and policy.budget < min(self._bytes):
            raise SplitError(
                f"split.budget={policy.budget} bytes: the smallest of {len(self._bytes)} tensors takes "
                f"{min(self._bytes)}, so nothing could ever be shared"
            )
        self._disagreement = 0.0
        self._known: dict[str, _Memory] = {}

    def learn(
        self,
        scores: Mapping[str, Sequence[float]],
        weights: Mapping[str, float],
        disagreement: Mapping[str, float],
    ) -> None:
        """Take in a round: scores by client in the order of the pool, weights of the clients (their
        examples; one of 0 does not count), and the disagreement of the tensors that several shared.

        In scope "federation" no client's scores count for more than _SOUND medians of the round. What was not
        heard in this round stays as it was. Raises WireError, and learns nothing, when scores are not one for
        each tensor, finite and at least 0.
        """
        rows = {client: self._row(client, scores[client]) for client in sorted(scores)}
        if disagreement:
            self._disagreement = fmean(disagreement.values())
        for key, row in self._heard(rows, weights).items():
            old = self._known.get(key)
            if old is None:
                self._known[key] = _Memory(row, self._start(), np.zeros(len(row), np.int64))
            else:
                smoothed = self._policy.ema * old.scores + (1 - self._policy.ema) * row
                self._known[key] = _Memory(smoothed, old.side, old.away)
        self._known = {key: self._turned(memory) for key, memory in sorted(self._known.items())}

    def shared(self, client: str) -> frozenset[str]:
        """What this client is asked to share in the next round."""
        memory = self._memory(client)
        side = self._start() if memory is None else memory.side
        levels = np.zeros(len(side)) if memory is None else self._levels(memory.scores)
        return self._within_budget(side, levels)

    @property
    def threshold(self) -> float:
        """The one in force: a tensor of this level or a higher one is to be shared.

        "heterogeneity" is the mean disagreement last measured, 0 before, but never above the top level
        of a role: with nothing shared no disagreement could be measured, and nothing would ever change.
        """
        if not isinstance(self._policy.threshold, str):
            return float(self._policy.threshold)
        tops = [(len(role) - 0.5) / len(role) for role in self._roles]
        return min([self._disagreement, *tops])

    def levels(self, client: str) -> dict[str, float]:
        """Above 0 and below 1, by name: the rank of the smoothed, normalised score among tensors of the
        role. Empty while nothing is known."""
        memory = self._memory(client)
        if memory is None:
            return {}
        return dict(zip(self._pool.names, self._levels(memory.scores).tolist(), strict=True))

    def state(self) -> State:
        """All that is remembered: ``disagreement`` (1,), and ``known/CLIENT`` (3, tensors) with smoothed
        scores, sides and rounds away; the client is empty in scope "federation"."""
        rows = {f"known/{k}": np.stack([m.scores, m.side, m.away]) for k, m in self._known.items()}
        return {"disagreement": np.array([self._disagreement]), **rows}

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Go on from a ``state()``. Raises SplitError when it is of a pool of another size."""
        expected = (3, len(self._bytes))
        rows = {k.removeprefix("known/"): v for k, v in state.items() if k.startswith("known/")}
        if wrong := {key: v.shape for key, v in rows.items() if v.shape != expected}:
            raise SplitError(f"scores of another pool: expected arrays {expected}, got {wrong}")
        self._disagreement = float(state["disagreement"][0])
        self._known = {k: _Memory(v[0].copy(), v[1] != 0, v[2].astype(np.int64)) for k, v in rows.items()}

    def _row(self, client: str, scores: Sequence[float]) -> Values:
        row = np.array(scores, np.float64)
        if row.shape != (len(self._bytes),) or not ((row >= 0) & (row < np.inf)).all():
            raise WireError(
                f"client {client}: expected {len(self._bytes)} finite scores of at least 0, "
                f"got {row.size}: {str(row.tolist())[:80]}"
            )
        return np.minimum(row, _MOST)

    def _heard(self, rows: Mapping[str, Values], weights: Mapping[str, float]) -> Mapping[str, Values]:
        if self._policy.scope == "client":
            return rows
        counted = [client for client in rows if weights[client] > 0]
        total = math.fsum(weights[client] for client in counted)
        if not counted:
            return {}
        sizes = {client: float(rows[client].sum()) for client in counted}
        most = _SOUND * median_low([size for size in sizes.values() if size] or [1.0])
        parts = [
            weights[client] / total * min(1.0, most / (sizes[client] or 1.0)) * rows[client]
            for client in counted
        ]
        return {_FEDERATION: np.sum(parts, axis=0)}

    def _turned(self, memory: _Memory) -> _Memory:
        levels, at, margin = self._levels(memory.scores), self.threshold, self._policy.margin
        other_side = np.where(memory.side, levels < at - margin, levels >= at + margin)
        away = np.where(other_side, memory.away + 1, 0)
        turns = away >= self._policy.hysteresis
        side = memory.side ^ turns
        if isinstance(self._policy.threshold, str):
            # Hysteresis may hold back the tensor that is on top now while others leave.
            for role in self._roles:
                if not side[role].any():
                    side[role[np.argmax(levels[role])]] = True
        return _Memory(memory.scores, side, np.where(turns, 0, away))

    def _levels(self, scores: Values) -> Values:
        """(rank - 0.5) / m among the m tensors of a role, of the score in relation to its kind."""
        relative = np.zeros(len(scores), np.float32)  # so that what is equal but for rounding is a tie
        for kind in self._kinds:
            if largest := scores[kind].max():
                parts = scores[kind] / largest  # a mean of these does not overflow
                relative[kind] = parts / parts.mean()
        levels = np.zeros(len(scores))
        for role in self._roles:
            order = role[np.argsort(relative[role], kind="stable")]  # the pool is in the order of names
            levels[order] = (np.arange(len(order)) + 0.5) / len(order)
        return levels

    def _within_budget(self, side: NDArray[np.bool_], levels: Values) -> frozenset[str]:
        left = math.inf if self._policy.budget is None else self._policy.budget
        chosen = set()
        for i in np.argsort(-levels, kind="stable"):
            if side[i] and self._bytes[i] <= left:
                chosen.add(self._pool.names[i])
                left -= self._bytes[i]
        return frozenset(chosen)

    def _memory(self, client: str) -> _Memory | None:
        return self._known.get(_FEDERATION if self._policy.scope == "federation" else client)

    def _start(self) -> NDArray[np.bool_]:
        return np.full(len(self._bytes), self.threshold < 1)


class VariancePlan:
    """The split of each round by ``LeastVariance``: all tensors of the pool while it is measured, then
    those of the ``count`` blocks with the smallest relative variance, of equal ones the first.

    Raises SplitError when there are fewer blocks than ``count``.
    """

    def __init__(self, policy: LeastVariance, pool: Layout) -> None:
        self._policy, self._pool = policy, pool
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

    def learn(self, round_: int, updates: Sequence[Update]) -> None:
        """Take in the updates of a round, the first of which is 1. Variances of the first rounds are added
        up; those measured again replace them. Without a tensor that two clients shared nothing changes."""
        self._next = round_ + 1
        if not self._measures(round_) or not (found := relative_variance(self._pool, updates)):
            return
        variance = np.array([_mean_of(found, names) for names in self._blocks.values()])
        if self._variance is not None and round_ <= self._policy.measure:
            variance += self._variance
        self._variance = variance

    def shared(self, client: str) -> frozenset[str]:
        """What every client is asked to share in the next round."""
        if self._measures(self._next) or self._variance is None:
            return frozenset(self._pool.names)
        order = np.argsort(self._variance, kind="stable")[: self._policy.count]
        blocks = list(self._blocks.values())
        return frozenset(name for i in order for name in blocks[i])

    def state(self) -> State:
        """All that is remembered: ``next`` (1,), a round, and ``variance`` (blocks,) once it is measured."""
        measured = {} if self._variance is None else {"variance": self._variance.copy()}
        return {"next": np.array([float(self._next)]), **measured}

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Go on from a ``state()``. Raises SplitError when it is of another number of blocks."""
        variance = state.get("variance")
        if variance is not None and variance.shape != (len(self._blocks),):
            raise SplitError(f"variances of {variance.size} layers, but the model has {len(self._blocks)}")
        self._variance = None if variance is None else variance.copy()
        self._next = int(state["next"][0])

    def _measures(self, round_: int) -> bool:
        since, again = round_ - self._policy.measure, self._policy.again
        return since <= 0 or (again > 0 and since % again == 0)


def disagreement(pool: Layout, updates: Sequence[Update]) -> dict[str, float]:
    """By tensor, the mean of (1 - cosine) / 2 over pairs of clients that shared it, from 0 to 1.

    Computed in O(K n) from the sum s of K unit vectors: the mean cosine is (|s|^2 - K) / (K (K - 1)).
    An update of zeros has no direction and is skipped; with fewer than two left a tensor is not in it.
    """
    found = {}
    for spec in pool:
        total, clients = np.zeros(spec.size), 0
        for update in _of_tensor(pool, updates, spec.name):
            if length := np.linalg.norm(update):
                total, clients = total + update / length, clients + 1
        if clients > 1:
            cosine = (float(total @ total) - clients) / (clients * (clients - 1))
            found[spec.name] = min(max(round((1 - cosine) / 2, _DIGITS), 0.0), 1.0)
    return found


def relative_variance(pool: Layout, updates: Sequence[Update]) -> dict[str, float]:
    """By tensor that at least two clients shared, the variance between them over their mean square, from
    0 (all the same, or all zero) to 1 (a mean of zero)."""
    found = {}
    for spec in pool:
        total, clients, square = np.zeros(spec.size), 0, 0.0
        for update in _of_tensor(pool, updates, spec.name):
            total, clients, square = total + update, clients + 1, square + float(update @ update)
        if clients > 1:
            apart = (update - total / clients for update in _of_tensor(pool, updates, spec.name))
            found[spec.name] = sum(float(x @ x) for x in apart) / square if square else 0.0
    return found


def _of_tensor(pool: Layout, updates: Sequence[Update], name: str) -> Iterator[Values]:
    """One after the other: in float64 all clients at once would take twice what they sent."""
    span = pool.span(name)
    return (update.stretch(span).astype(np.float64) for update in updates if name in update.shared)


def _mean_of(found: Mapping[str, float], names: Sequence[str]) -> float:
    """Of the tensors that were measured; infinite without any, so that the block comes last."""
    values = [found[name] for name in names if name in found]
    return fmean(values) if values else math.inf


def _groups(keys: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """The positions of equal keys, by first occurrence."""
    members: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    return [np.array(positions) for positions in members.values()]


def _without_numbers(layer: str) -> str:
    return ".".join(part for part in layer.split(".") if not part.isdecimal())
