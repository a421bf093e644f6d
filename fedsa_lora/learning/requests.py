"""Requests: work of a client other than its plain training, which the server asks for by a word."""

from __future__ import annotations

from fedsa_lora.errors import WireError
from fedsa_lora.exchange.arrays import NamedArrays
from fedsa_lora.learning.local_round import LocalRound
from fedsa_lora.learning.personalisation import Training
from fedsa_lora.tasks.task import Task


class Requests:
    """The words that a client knows, and the work that each asks for: none."""

    def answer(
        self, word: str, local: LocalRound, task: Task, initial: NamedArrays, kept: NamedArrays
    ) -> tuple[int, Training]:
        """The number of examples that the work is for, by which it counts in the mean, and its trainings.

        ``local`` is the round as any other would be, and ``initial`` the common start of all tensors. The
        trainings return the outcome to share from and what is remembered, which is ``kept`` in the client's
        next round; nothing at first.

        Raises WireError for an unknown word, or a task that it cannot be asked of.
        """
        raise WireError(f"was asked to {word[:20]!r}, which this run's task does not support")
