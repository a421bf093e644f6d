"""Counts failures of clients and rounds with too few results, and what follows from them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import NamedArrays
from strategies.round.admission import Admission
from strategies.round.reasons import causes

ABSENCE = "attendance/"  # by client in the memory of a checkpoint: failures in a row, and left out through
SKIPPED = "skipped"  # rounds in a row that did not count
log = logging.getLogger("flwr")


class Attendance:
    """Leaves out a client that keeps failing, for a while, and counts the rounds that did not count.

    A client that failed in ``exclude_after`` rounds in a row (0: never) is left out from then on and of the
    next ``exclude_rounds``. When it is back, one more failure is enough, until it answers once. ``skipped``
    rounds in a row had too few results; a run ends with the ``max_skipped``-th.
    """

    def __init__(self, max_skipped: int = 1, exclude_after: int = 0, exclude_rounds: int = 1) -> None:
        self.max_skipped, self.exclude_after, self.exclude_rounds = max_skipped, exclude_after, exclude_rounds
        self.skipped = 0
        self._odd = ""
        self._failures: dict[str, int] = {}  # in a row, up to the last round that a client was asked in
        self._out_through: dict[str, int] = {}  # the last round that a client is left out of

    def excluded(self, round_: int) -> frozenset[str]:
        """The clients that are left out of a round."""
        return frozenset(client for client, last in self._out_through.items() if round_ <= last)

    def note(self, round_: int, asked: Collection[str], answered: Collection[str]) -> None:
        """Take in who was asked in a round, and whose answer was good."""
        if not self.exclude_after:
            return
        for client in asked:
            self._failures[client] = 0 if client in answered else self._failures.get(client, 0) + 1
            if self._failures[client] >= self.exclude_after:
                self._out_through[client] = round_ + self.exclude_rounds
            else:
                self._out_through.pop(client, None)

    def count(self, odd: str) -> None:
        """Note a round with enough results, and in a sentence what was ``odd`` in it, if anything was: it
        may be why later rounds fail."""
        self.skipped, self._odd = 0, odd

    def skip(self, round_: int, asked: int, admission: Admission[Any], told: str) -> None:
        """Count a round with too few results. Raises RunError, with who failed and why, where a run ends."""
        self.skipped += 1
        failed = asked - len(admission.answers)
        reason = f"{failed} of {asked} clients failed in round {round_}, and {told}"
        if self._odd:
            reason += f"; in the last valid round {self._odd}"
        if self.skipped < self.max_skipped:
            log.warning("round %d is skipped, shared values are unchanged: %s", round_, reason)
            return
        before = f"{self.skipped} rounds in a row had too few results; " if self.skipped > 1 else ""
        raise RunError("\n".join([before + reason, *causes(admission.failures)]))

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays; nothing while everybody answers."""
        found: dict[str, NDArray[Any]] = {
            ABSENCE + client: np.array([failures, self._out_through.get(client, 0)])
            for client, failures in sorted(self._failures.items())
            if failures
        }
        return found | ({SKIPPED: np.array([self.skipped])} if self.skipped else {})

    def restore(self, memory: NamedArrays) -> None:
        """Resume from what ``state`` gave."""
        known = {name.removeprefix(ABSENCE): a for name, a in memory.items() if name.startswith(ABSENCE)}
        self._failures = {client: int(a[0]) for client, a in known.items()}
        self._out_through = {client: int(a[1]) for client, a in known.items() if a[1]}
        self.skipped = int(memory[SKIPPED][0]) if SKIPPED in memory else 0
