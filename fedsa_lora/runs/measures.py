"""Measures of personalisation: what a federation was worth to each client, and to all of them together.

Values are accuracies, or whatever the primary measure of the task is, of each client's own model on its own
test examples, over all clients, also those that never took part. Gains are better when higher, whichever way
the measure is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05  # of tests, and what an interval leaves out
FEWEST_EQUAL = 6  # equal differences of one sign have a chance of 2 * 2**-6 < LEVEL where nothing differs
SAME = 1e-9  # differences of shares that are equal but for rounding
ROUNDING = 1e-6  # relative error of a mean in float32, such as a loss; accuracies differ by more
Values = Mapping[str, float]  # by client


@dataclass(frozen=True)
class Spread:
    """One value per client, summed up. ``std`` is that of the population of clients; ``worst_tenth`` the mean
    of the worst ceil(0.1 n); ``deciles`` the nine between minimum and maximum; ``jain`` (sum x)^2 / (n sum
    x^2), from 1 / n to 1 (Jain et al., 1984); ``entropy`` that of x / sum x over log n, from 0 to 1: shares,
    which negative values have not, so both are None with one."""

    clients: int
    mean: float
    weighted: float
    std: float
    worst: float
    worst_client: str
    worst_tenth: float
    deciles: list[float]
    jain: float | None
    entropy: float | None


def spread(
    values: Values, examples: Mapping[str, float] | None = None, higher_is_better: bool = True
) -> Spread:
    """Of at least one client; ``weighted`` is by ``examples`` of the client, else the plain mean."""
    names = sorted(values)
    x = np.array([values[name] for name in names], float)
    weights = np.array([examples[name] for name in names], float) if examples else np.ones(len(x))
    worst = int(x.argmin() if higher_is_better else x.argmax())
    from_worst = np.sort(x) if higher_is_better else np.sort(x)[::-1]
    shares = x.min() >= 0
    return Spread(
        clients=len(x),
        mean=float(x.mean()),
        weighted=float(np.average(x, weights=weights)),
        std=float(x.std()),
        worst=float(x[worst]),
        worst_client=names[worst],
        worst_tenth=float(from_worst[: math.ceil(0.1 * len(x))].mean()),
        deciles=np.quantile(x, np.arange(1, 10) / 10).tolist(),
        jain=_jain(x) if shares else None,
        entropy=_entropy(x) if shares else None,
    )


def _jain(x: NDArray[np.float64]) -> float:
    if not x.any():
        return 1.0
    x = x / x.max()  # of whose squares none is too small for a float
    return float(x.sum() ** 2 / (len(x) * (x @ x)))


def _entropy(x: NDArray[np.float64]) -> float:
    if len(x) == 1 or not x.any():
        return 1.0
    p = x / x.sum()
    p = p[p > 0]
    return float(-(p * np.log(p)).sum() / np.log(len(x)))


def mean_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def gains(values: Values, reference: Values, higher_is_better: bool = True) -> dict[str, float]:
    """By client that both have: how much better the value is than the reference's, such as training alone."""
    both = sorted(values.keys() & reference.keys())
    if higher_is_better:
        return {name: values[name] - reference[name] for name in both}
    return {name: reference[name] - values[name] for name in both}


def lead(values: Values, reference: Values, higher_is_better: bool = True) -> tuple[float, float]:
    """Mean gain over the reference of the clients that both have, of which there is one at least, and its
    noise: one standard error."""
    found = list(gains(values, reference, higher_is_better).values())
    return fmean(found), standard_error(found)


def harmed(values: Values, reference: Values, higher_is_better: bool = True) -> float | None:
    """Share of clients that are worse than their reference; None where none has one."""
    found = gains(values, reference, higher_is_better)
    return sum(worse(gain, reference[name]) for name, gain in found.items()) / len(found) if found else None


def worse(gain: float, reference: float) -> bool:
    """True where a gain over a reference is a loss that is more than rounding."""
    return gain < -ROUNDING * abs(reference)


def standard_error(differences: Sequence[float] | NDArray[np.float64]) -> float:
    """Of the mean of independent values; infinite for one alone."""
    x = np.asarray(differences, float)
    return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.inf


def interval(differences: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the paired t interval of 95 % around the mean of one difference for each pair, with n - 1
    degrees of freedom (Student, 1908); infinite for a single pair, of which nothing is known.

    Shares of few examples are coarse, so that all differences may be equal by chance, and an interval
    without width would claim certainty. Then the sign test decides (Dixon and Mood, 1946): fewer than six
    equal differences are as insignificant as a single one.
    """
    x = np.asarray(differences, float)
    if len(x) == 1 or (len(x) < FEWEST_EQUAL and np.ptp(x) < SAME and abs(x[0]) >= SAME):
        return -math.inf, math.inf
    from scipy.special import stdtrit  # a tenth of a second, which commands without an interval save

    mean, half = float(x.mean()), float(stdtrit(len(x) - 1, 1 - LEVEL / 2)) * standard_error(x)
    return mean - half, mean + half


def first_at(
    curve: Sequence[tuple[float, float]], target: float, higher_is_better: bool = True
) -> float | None:
    """Cost until the target was first reached; ``curve`` has (rounds, bytes or seconds so far,
    value) in the order of time. None when it never was."""
    if higher_is_better:
        return next((spent for spent, value in curve if value >= target), None)
    return next((spent for spent, value in curve if value <= target), None)


def confusion(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts (classes, classes): of the examples of a class (row), how many were called which (column)."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)
