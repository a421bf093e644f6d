"""Updates on the server: sparse where they were sent so, and their mean without making them dense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import Layout, TensorSpec, Vector

CHUNK = 1 << 15  # values added at a time: their float64 forms stay in the cache
COUNT_FLOOR = 1e-3  # examples that a client is taken to have of a class it never saw


@dataclass(frozen=True)
class Update:
    """A client's difference from what it started from.

    ``positions`` are those of its ``values`` in the vector of everything that may be shared, ascending;
    None: every one. ``shared`` are the tensors that it covers, ``rank`` that of the client's adapter
    where it has its own. ``counts`` are the client's train examples by class, empty unless it
    sends them, and ``scores`` the importance of tensors, empty unless a plan asks for it; ``loss`` is that
    of its training; ``examples`` are what it weighs in a mean.
    """

    client: str
    examples: int
    shared: frozenset[str]
    positions: NDArray[np.int64] | None
    values: Vector
    loss: float = 0.0
    rank: int | None = None
    counts: Sequence[int] = field(default_factory=tuple)
    scores: Sequence[float] = field(default_factory=tuple)

    def within(self, span: slice) -> slice:
        """The places of those values that lie in a stretch of the whole vector."""
        if self.positions is None:
            return span
        start, stop = np.searchsorted(self.positions, (span.start, span.stop))
        return slice(int(start), int(stop))

    def among(self, index: NDArray[np.int64] | None) -> Update:
        """The same of the values at ascending positions ``index`` of the whole vector (None: all), as if
        there were no others."""
        if index is None:
            return self
        if self.positions is None:
            return replace(self, values=self.values[index])
        _, kept, at = np.intersect1d(self.positions, index, assume_unique=True, return_indices=True)
        return replace(self, positions=at, values=self.values[kept])

    def dense(self, size: int) -> Vector:
        """The whole vector (size,), zeros where nothing was sent."""
        return self.stretch(slice(0, size))

    def stretch(self, span: slice) -> Vector:
        """A stretch of the whole vector, zeros where nothing was sent."""
        if self.positions is None:
            return self.values[span]
        part, vector = self.within(span), np.zeros(span.stop - span.start, np.float32)
        vector[self.positions[part] - span.start] = self.values[part]
        return vector


Together = Sequence[Sequence[Update]]  # of a round: the updates of each mean that is taken


def of_tensor(layout: Layout, updates: Sequence[Update], name: str) -> Iterator[NDArray[np.float64]]:
    """The values of a tensor of those who share it, one after the other: in float64 all clients at once
    would take twice what they sent."""
    span = layout.span(name)
    return (update.stretch(span).astype(np.float64) for update in updates if name in update.shared)


def tensor_weights(layout: Layout, updates: Sequence[Update]) -> NDArray[np.float64]:
    """p_k by client and tensor, (clients, tensors): examples over those of the clients that share the
    tensor. Zero where a client does not share it."""
    examples = np.array([[u.examples * (name in u.shared) for name in layout.names] for u in updates], float)
    total = examples.sum(axis=0)
    weights: NDArray[np.float64] = examples / np.where(total > 0, total, 1)
    return weights


def mean_update(layout: Layout, updates: Sequence[Update]) -> Vector:
    """sum_k p_k u_k tensor by tensor over those who share it, (layout.size,).

    Every value that was received is read once: the cost grows with them, not with clients x
    parameters. A head whose clients send their class counts is averaged row by row with
    u_kc = (n_kc + 1e-3) / sum_j (n_jc + 1e-3).
    """
    weights = tensor_weights(layout, updates)
    total = np.zeros(layout.size)
    if weights.size and (weights == weights[:, :1]).all() and all(u.positions is None for u in updates):
        _add_whole(total, updates, weights[:, 0])
    else:
        for update, by_tensor in zip(updates, weights, strict=True):
            _add_parts(total, layout, update, by_tensor)
    _average_heads(total, layout, updates)
    return total.astype(np.float32)


def _add_whole(total: NDArray[np.float64], updates: Sequence[Update], weights: NDArray[np.float64]) -> None:
    """Add updates of every value, stretch by stretch: each of ``total`` comes from memory and goes back
    once, not once for each client."""
    weighted = np.empty(CHUNK)
    for start in range(0, total.size, CHUNK):
        stretch = total[start : start + CHUNK]
        product = weighted[: stretch.size]
        for update, weight in zip(updates, weights, strict=True):
            product[:] = update.values[start : start + CHUNK]
            product *= weight
            stretch += product


def _add_parts(
    total: NDArray[np.float64], layout: Layout, update: Update, weights: NDArray[np.float64]
) -> None:
    """Add an update by the weight of each tensor, at once where those that it shares have the same."""
    same = weights[weights > 0]
    if same.size and (same == same[0]).all():
        _add(total, update, slice(0, layout.size), same[0])
        return
    for spec, weight in zip(layout, weights, strict=True):
        if weight:
            _add(total, update, layout.span(spec.name), weight)


def _add(total: NDArray[np.float64], update: Update, span: slice, weight: float) -> None:
    part = update.within(span)
    for start in range(part.start, part.stop, CHUNK):
        piece = slice(start, min(start + CHUNK, part.stop))
        at = piece if update.positions is None else update.positions[piece]
        total[at] += weight * update.values[piece].astype(np.float64)


def _average_heads(total: NDArray[np.float64], layout: Layout, updates: Sequence[Update]) -> None:
    """Overwrite the head's rows by their mean with class counts."""
    classes = len(updates[0].counts)
    if not classes or any(len(update.counts) != classes for update in updates):
        return
    for spec in _rows_by_class(layout, classes):
        sharing = [update for update in updates if spec.name in update.shared]
        if not sharing:
            continue
        weights = np.array([update.counts for update in sharing], float) + COUNT_FLOOR
        weights /= weights.sum(axis=0)
        span, width = layout.span(spec.name), spec.size // classes
        total[span] = 0
        for update, rows in zip(sharing, weights, strict=True):
            part = update.within(span)
            at = np.arange(span.start, span.stop) if update.positions is None else update.positions[part]
            total[at] += rows[(at - span.start) // width] * update.values[part].astype(np.float64)


def _rows_by_class(layout: Layout, classes: int) -> list[TensorSpec]:
    return [spec for spec in layout if spec.role == "head" and spec.shape[:1] == (classes,)]
