"""Groups of clients, by the direction of their updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Vector
from fedsa_lora.exchange.codec import Codec
from fedsa_lora.group import Group

if TYPE_CHECKING:
    from fedsa_lora.settings import RunConfig

MEMBER, DIRECTION = "member/", "direction/"  # by client in the memory of a checkpoint


@dataclass(frozen=True)
class Clusters(Group):
    """Settings of groups: into ``groups``, or as many as are farther apart than ``distance``
    (1 - cosine, averaged over pairs).

    All are one group for the first ``after`` rounds, and are then regrouped every ``every`` rounds (0:
    once). ``ema`` is the weight of earlier rounds in a client's direction. Raises ConfigError for a
    value out of range.
    """

    groups: int | None = 2
    distance: float | None = None
    after: int = 2
    every: int = 1
    ema: float = 0.9

    off: ClassVar[Mapping[str, str]] = {"groups": "one for all clients"}

    def __post_init__(self) -> None:
        if (self.groups is None) == (self.distance is None):
            raise ConfigError("give either groups or distance, and set the other to null")
        if self.groups is not None and self.groups < 1:
            raise ConfigError(f"groups={self.groups}: expected at least 1")
        if self.distance is not None and not 0 < self.distance <= 2:
            raise ConfigError(f"distance={self.distance:g}: expected more than 0 and at most 2")
        if self.after < 1:
            raise ConfigError(f"after={self.after}: expected at least 1, a round from which to know clients")
        if self.every < 0:
            raise ConfigError(f"every={self.every}: expected at least 0")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema={self.ema:g}: expected at least 0 and below 1")

    def due(self, round_: int) -> bool:
        """True where clients are grouped at the end of a round."""
        return round_ == self.after or (
            self.every > 0 and round_ > self.after and (round_ - self.after) % self.every == 0
        )

    def describe(self) -> dict[str, str]:
        number = self.groups if self.distance is None else f"as many as differ by {self.distance:g}"
        often = "every round" if self.every == 1 else f"every {self.every} rounds"
        again = f"regrouped {often}" if self.every else "once"
        return {"groups": f"{number}, after round {self.after}, {again}"}

    def clashes(self, run: RunConfig) -> Iterator[str]:
        strategy, federation = run.strategy, run.federation
        yield from ungroupable(strategy.name, strategy.can("stateless"), run.downlink)
        if self.groups is not None and self.groups > federation.clients:
            yield f"clusters.groups={self.groups}: there are {federation.clients} clients; expected no more"
        if self.after >= federation.rounds:
            yield (
                f"clusters.after={self.after}: no round is left for the groups; expected less than "
                f"federation.rounds={federation.rounds}"
            )


def ungroupable(inner: str, one_by_one: bool, downlink: Codec | None) -> Iterator[str]:
    """One line for each choice that cannot be had together with groups. ``one_by_one``: the strategy that is
    called ``inner`` can aggregate one group after the other."""
    if not one_by_one:
        yield (
            f"clusters: {inner} cannot aggregate groups separately: it remembers earlier "
            "rounds, compares clients or combines factors; expected strategy=fedavg or fedprox"
        )
    if downlink is not None:
        yield "clusters: clients change groups, so broadcasts cannot be differences: set downlink=whole"


class Grouping:
    """Remembers each client's direction, and which group that put it in.

    A direction is the exponential mean of a client's updates, each at length 1, from zero on: its length
    means nothing, and the first update weighs no more than it should. Directions rather than
    similarities are remembered, because noise is then averaged out before two clients are compared, and
    so that two who never met in a round can be; it costs one vector for each client.
    """

    def __init__(self, settings: Clusters) -> None:
        self.settings = settings
        self.members: dict[str, int] = {}
        self.directions: dict[str, Vector] = {}

    def of(self, client: str) -> int:
        """The number of a client's group; of one that was never grouped, that of the largest."""
        return self.members.get(client, self.largest)

    @property
    def largest(self) -> int:
        """The group with most members, of equal ones that of the lowest number."""
        return _most(self.members.values())

    def learn(self, round_: int, updates: Mapping[str, Vector]) -> dict[int, int]:
        """Take in the updates of a round, and group all clients that are known when that is due.

        Returns by group the one whose values it continues from: itself, or for a new one that which most
        of its members come from.
        """
        for client, update in updates.items():
            self._smooth(client, update)
        if not self.settings.due(round_) or len(self.directions) < 2:
            return {number: number for number in {self.largest, *self.members.values()}}
        before = {client: self.of(client) for client in sorted(self.directions)}
        found = clusters(self.directions, self.settings)
        kept = matched(found, before)
        free = (number for number in count() if number not in kept.values())
        numbers = [kept[i] if i in kept else next(free) for i in range(len(found))]
        self.members = {c: number for number, group in zip(numbers, found, strict=True) for c in group}
        return {
            number: number if i in kept else _most(before[client] for client in found[i])
            for i, number in enumerate(numbers)
        }

    def _smooth(self, client: str, update: Vector) -> None:
        norm = float(np.linalg.norm(update.astype(np.float64)))
        if not norm:  # it sent nothing to know it by
            return
        past, ema = self.directions.get(client, np.float32(0)), np.float32(self.settings.ema)
        self.directions[client] = ema * past + (1 - ema) * (update / np.float32(norm))

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Everything that is remembered, as arrays."""
        members = {MEMBER + c: np.array([number], np.float32) for c, number in self.members.items()}
        return members | {DIRECTION + c: direction for c, direction in self.directions.items()}

    def restore(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Resume from a ``state``; other arrays of a checkpoint's memory are ignored."""
        self.members = {c: int(number[0]) for c, number in _by_client(state, MEMBER).items()}
        self.directions = _by_client(state, DIRECTION)


def clusters(directions: Mapping[str, Vector], settings: Clusters) -> list[list[str]]:
    """Clients by average linkage over 1 - cosine; the largest group first, of equal ones that of the first
    client."""
    from sklearn.cluster import AgglomerativeClustering

    clients = sorted(directions)
    fixed = None if settings.groups is None else min(settings.groups, len(clients))
    model = AgglomerativeClustering(
        n_clusters=fixed, distance_threshold=settings.distance, metric="precomputed", linkage="average"
    )
    labels = model.fit_predict(1 - cosines([directions[client] for client in clients]))
    found = [[c for c, its in zip(clients, labels, strict=True) if its == label] for label in set(labels)]
    return sorted(found, key=lambda group: (-len(group), group[0]))


def cosines(vectors: Sequence[Vector]) -> NDArray[np.float64]:
    """Cosine of each pair, (n, n); 0 with a vector that is zero."""
    rows = np.stack(vectors).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(norms > 0, norms, 1)
    found: NDArray[np.float64] = np.clip(rows @ rows.T, -1, 1)
    np.fill_diagonal(found, 1)
    return found


def matched(found: Sequence[Sequence[str]], before: Mapping[str, int]) -> dict[int, int]:
    """By position in ``found``, the old number of a group: of the assignments of numbers to groups that in
    which most clients keep theirs. One in which no client would keep it is new."""
    from scipy.optimize import linear_sum_assignment

    numbers = sorted(set(before.values()))
    stays = np.array([[sum(before[c] == number for c in group) for number in numbers] for group in found])
    rows, columns = linear_sum_assignment(stays, maximize=True)
    return {int(i): numbers[j] for i, j in zip(rows, columns, strict=True) if stays[i, j]}


def _most(numbers: Iterable[int]) -> int:
    """The most frequent number, of equally frequent ones the lowest; 0 of none."""
    times = Counter(numbers)
    return min(times, key=lambda number: (-times[number], number), default=0)


def _by_client(state: Mapping[str, NDArray[np.float32]], prefix: str) -> dict[str, NDArray[np.float32]]:
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
