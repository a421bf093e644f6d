"""Report of a training: what it did, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.tasks.task import Examples

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class TrainReport:
    """Report of a fit: mean loss over examples, counts, and seconds of wall time."""

    loss: float = 0.0
    steps: int = 0
    examples: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        examples: Examples,
        steps: Sequence[Indices],
        passes: Sequence[Indices],
        loss: float,
        seconds: float,
    ) -> TrainReport:
        """Of a training in ``steps``, computed in ``passes``, each the indices of its examples; ``loss`` is
        the sum over examples."""
        seen = sum(map(len, steps))
        tokens = int(sum(examples.lengths[batch].sum() for batch in steps))
        padded = tokens
        if not examples.packed:
            padded = int(sum(examples.lengths[part].max() * len(part) for part in passes))
        return cls(
            loss=loss / max(1, seen),
            steps=len(steps),
            examples=seen,
            tokens=tokens,
            padded_tokens=padded,
            seconds=seconds,
        )

    def numbers(self) -> dict[str, float]:
        """The numbers that a client reports of a training: all but the examples, which its header has."""
        return {name: float(value) for name, value in asdict(self).items() if name != "examples"}

    def __add__(self, other: TrainReport) -> TrainReport:
        """One training after another, as one."""
        examples = self.examples + other.examples
        return TrainReport(
            loss=(self.loss * self.examples + other.loss * other.examples) / max(1, examples),
            steps=self.steps + other.steps,
            examples=examples,
            tokens=self.tokens + other.tokens,
            padded_tokens=self.padded_tokens + other.padded_tokens,
            seconds=self.seconds + other.seconds,
        )
