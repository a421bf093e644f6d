"""Batches for evaluation: examples of similar length, so that little is padding."""

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
        sorted_ = lengths[batch]
        saved = np.arange(1, len(batch)) * (sorted_[-1] - sorted_[:-1])
        if len(saved) and saved.max() > worth:
            cut = 1 + int(saved.argmax())
            rest += [batch[cut:], batch[:cut]]
        else:
            yield batch
