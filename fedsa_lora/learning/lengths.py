"""Batches of examples of similar length, so that little is padding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

WORTH = 24  # tokens of padding that a further batch must save on a CPU


def chunks(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Consecutive parts of at most ``size``."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def of_similar_length(lengths: NDArray[np.int64], size: int, worth: float) -> Iterator[NDArray[np.int64]]:
    """Batches of at most ``size`` examples, the shortest first, and of fewer where that saves more tokens of
    padding than a further batch is ``worth``."""
    rest = [*chunks(np.argsort(lengths, kind="stable"), size)][::-1]
    while rest:
        batch = rest.pop()
        cut, saved = best_cut(lengths[batch])
        if saved > worth:
            rest += [batch[cut:], batch[:cut]]
        else:
            yield batch


def best_cut(costs: NDArray[np.int64]) -> tuple[int, int]:
    """The place at which a batch is best cut in two, and what that saves, where each example costs as much as
    the last of its batch. ``costs`` (n,) ascend; 0 and 0 for fewer than two."""
    if len(costs) < 2:
        return 0, 0
    saved = np.arange(1, len(costs)) * (costs[-1] - costs[:-1])
    return 1 + int(saved.argmax()), int(saved.max())
