"""Chooses by importance: the next round shares the tensors whose scores clients reported as high."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import SplitError, WireError
from fedsa_lora.exchange.adaptive import Importance
from fedsa_lora.exchange.arrays import Layout
from strategies.rules.updates import Together, of_tensor

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


class ByImportance:
    """The choice of each round by ``Importance``: shared are the tensors whose level reaches the threshold.

    ``pool``: the tensors that are scored, and no others. Until scores are known all of it is shared, or
    nothing with a threshold of 1 or more. Of what reaches the threshold, the budget takes the highest
    levels that fit, then names in order.

    Raises SplitError when not one tensor of the pool fits the budget.
    """

    def __init__(self, policy: Importance, pool: Layout) -> None:
        self._policy, self.pool = policy, pool
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

    @property
    def scores(self) -> int:
        """The number that each upload brings: one for each tensor of the pool."""
        return len(self._bytes)

    def learn(self, round_: int, together: Together) -> dict[str, Any]:
        """Take in a round, the updates of each mean among the values of the pool. Returns the threshold that
        is then in force, for the row of the round."""
        updates = [update for members in together for update in members]
        scores = {update.client: update.scores for update in updates}
        weights = {update.client: float(update.examples) for update in updates}
        self.hear(scores, weights, disagreement(self.pool, together))
        return {"threshold": self.threshold}

    def hear(
        self,
        scores: Mapping[str, Sequence[float]],
        weights: Mapping[str, float],
        disagreement: Mapping[str, float],
    ) -> None:
        """Take in scores by client in the order of the pool, weights of the clients (their
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
        """The tensors that this client is asked to share in the next round."""
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
        return dict(zip(self.pool.names, self._levels(memory.scores).tolist(), strict=True))

    def state(self) -> State:
        """All that is remembered: ``disagreement`` (1,), and ``known/CLIENT`` (3, tensors) with smoothed
        scores, sides and rounds away; the client is empty in scope "federation"."""
        rows = {f"known/{k}": np.stack([m.scores, m.side, m.away]) for k, m in self._known.items()}
        return {"disagreement": np.array([self._disagreement]), **rows}

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Resume from a ``state()``. Raises SplitError when it is of a pool of another size."""
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
                chosen.add(self.pool.names[i])
                left -= self._bytes[i]
        return frozenset(chosen)

    def _memory(self, client: str) -> _Memory | None:
        return self._known.get(_FEDERATION if self._policy.scope == "federation" else client)

    def _start(self) -> NDArray[np.bool_]:
        return np.full(len(self._bytes), self.threshold < 1)


def disagreement(pool: Layout, together: Together) -> dict[str, float]:
    """By tensor, the mean of (1 - cosine) / 2 over pairs of clients that shared it and whose updates are
    averaged with one another, from 0 to 1.

    Computed in O(K n) from the sum s of K unit vectors: the cosines of their pairs add up to
    (|s|^2 - K) / 2. An update of zeros has no direction and is skipped; without a pair left a tensor is not
    in it.
    """
    found = {}
    for spec in pool:
        cosines, pairs = 0.0, 0  # both twice, as each pair is counted in either order
        for updates in together:
            total, clients = np.zeros(spec.size), 0
            for update in of_tensor(pool, updates, spec.name):
                if length := np.linalg.norm(update):
                    total, clients = total + update / length, clients + 1
            if clients > 1:
                cosines += float(total @ total) - clients
                pairs += clients * (clients - 1)
        if pairs:
            found[spec.name] = min(max(round((1 - cosines / pairs) / 2, _DIGITS), 0.0), 1.0)
    return found


def _groups(keys: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    """The positions of equal keys, by first occurrence."""
    members: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    return [np.array(positions) for positions in members.values()]


def _without_numbers(layer: str) -> str:
    return ".".join(part for part in layer.split(".") if not part.isdecimal())
