"""The examples of the clients in the last mean, for methods that take a client's own part off it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import NamedArrays
from strategies.rules.updates import Update

EXAMPLES = "examples/"  # by client in the memory of a checkpoint


class Totals:
    """Remembers who is in the last mean, with how many examples; nobody unless clients are ``told``."""

    def __init__(self, told: bool) -> None:
        self.told = told
        self._examples: dict[str, int] = {}
        self._total = 0

    def of(self, client: str) -> int:
        """The examples of all clients in the mean, for one of them; 0 for any other."""
        return self._total if client in self._examples else 0

    def weight(self, client: str) -> float:
        """The weight of a client in the mean; 0 where it has none, or weights are not sent."""
        return self._examples.get(client, 0) / max(1, self._total)

    def learn(self, updates: Sequence[Update]) -> None:
        """Take in of which updates the mean is."""
        if self.told:
            self._take({update.client: update.examples for update in updates})

    def forget(self) -> None:
        """Clients continued from the mean: it is that of what they hold no more."""
        self._take({})

    def state(self) -> dict[str, NDArray[Any]]:
        return {EXAMPLES + client: np.array([count]) for client, count in self._examples.items()}

    def restore(self, memory: NamedArrays) -> None:
        """Resume from what ``state`` gave; other arrays of the memory are ignored."""
        found = {name.removeprefix(EXAMPLES): a for name, a in memory.items() if name.startswith(EXAMPLES)}
        self._take({client: int(count[0]) for client, count in found.items()})

    def _take(self, examples: dict[str, int]) -> None:
        self._examples, self._total = examples, sum(examples.values())
