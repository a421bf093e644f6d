"""Paired tests over the clients of the same federations: whether two methods can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.runs.measures import interval


@dataclass(frozen=True)
class Difference:
    """A mean difference with the ends of its interval, and ``p``, how likely one as large is by chance."""

    mean: float
    low: float
    high: float
    p: float


def paired(differences: Sequence[float] | NDArray[np.float64]) -> Difference:
    """Of one difference for each pair, at least one: its ``interval``, and Wilcoxon's signed-rank test,
    two-sided, in which zeros have ranks (Pratt, 1959). Of a single pair nothing is known: p is 1."""
    x = np.asarray(differences, float)
    mean = float(x.mean())
    told = len(x) > 1 and x.any()
    from scipy import stats  # a third of a second, which no fault of a grid needs

    p = float(stats.wilcoxon(x, zero_method="pratt").pvalue) if told else 1.0
    return Difference(mean, *interval(x), p)


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted so that the chance of one false claim among all is kept (Holm, 1979): the i-th
    smallest of m times m - i + 1, never below those before it, at most 1."""
    adjusted, so_far = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = so_far
    return adjusted
