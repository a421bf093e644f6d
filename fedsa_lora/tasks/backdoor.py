"""Clients that poison their own data, so that what an attack achieves can be measured."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.group import Group
from fedsa_lora.seeds import generator


@dataclass(frozen=True)
class Backdoor(Group):
    """Data poisoning with a trigger: BadNets, arXiv:1708.06733; for texts arXiv:2004.06660.

    ``clients`` put the task's trigger (a rare word, a bright corner) into a ``share`` of their train
    examples and call these ``target``, a class by the number of the model's output. They follow the
    protocol otherwise. The attack succeeds at another client as often as that one's own model calls
    examples of other classes ``target`` once they bear the trigger.
    """

    clients: list[int]
    target: int = 0
    share: float = 0.5

    def __post_init__(self) -> None:
        if not self.clients or not 0 < self.share <= 1 or self.target < 0:
            raise ConfigError(
                f"clients={self.clients}, share={self.share:g}, target={self.target}: expected at least one "
                "client, more than 0 and at most 1 of its train examples, and the number of a class"
            )

    def check_deployed(self) -> None:
        raise ConfigError(
            "attack: clients can poison their data in simulation only; start it with `fedsa-lora "
            "run`, or set attack=none",
            sent="clients can poison their data in simulation only",
            key="attack",
        )

    def check(self, known: Collection[str], classes: int) -> None:
        """Raise ConfigError unless the clients are among the ``known``, not all of them, and the target is
        one of the classes."""
        if strangers := self.names - set(known):
            raise ConfigError(
                f"attack.clients: no client {min(strangers)} among the {len(known)} of this run"
            )
        if not set(known) - self.names:
            raise ConfigError("attack.clients names every client: nobody is left to be attacked")
        if self.target >= classes:
            raise ConfigError(f"attack.target={self.target}: expected 0 to {classes - 1}, one of the classes")

    @property
    def names(self) -> frozenset[str]:
        """The clients that attack, by id."""
        return frozenset(map(str, self.clients))

    def chosen(self, seed: int, client: str, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Marks the train rows (n,) of a client that are poisoned; none of an honest one."""
        marked = np.zeros(len(rows), dtype=bool)
        if client in self.names:
            count = max(1, round(self.share * len(rows)))
            marked[generator(seed, "backdoor", client).permutation(len(rows))[:count]] = True
        return marked
