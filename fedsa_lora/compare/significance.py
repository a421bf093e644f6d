"""Whether two methods can be told apart: paired tests over the clients of the same federations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """A mean difference with the ends of its interval, and ``p``, how likely one as large is by chance."""

    mean: float
    low: float
    high: float
    p: float


def paired(differences: Sequence[float] | NDArray[np.float64]) -> Difference:
    """Of one difference for each pair, at least one: a t interval of 95 %, and Wilcoxon's signed-rank test,
    two-sided, in which zeros have ranks (Pratt, 1959). Of a single pair nothing is known: p is 1."""
    x = np.asarray(differences, float)
    mean = float(x.mean())
    if len(x) == 1:
        return Difference(mean, -math.inf, math.inf, 1.0)
    half = float(stats.t.ppf(1 - LEVEL / 2, len(x) - 1) * standard_error(x))
    p = float(stats.wilcoxon(x, zero_method="pratt").pvalue) if x.any() else 1.0
    return Difference(mean, mean - half, mean + half, p)


def standard_error(differences: Sequence[float] | NDArray[np.float64]) -> float:
    """Of the mean of independent values; infinite for one alone."""
    x = np.asarray(differences, float)
    return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.inf


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted so that the chance of one false claim among all is kept (Holm, 1979): the i-th
    smallest of m times m - i + 1, never below those before it, at most 1."""
    adjusted, so_far = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = so_far
    return adjusted
