"""Bounds on the size of uploads, on reported examples and on the number of rejected uploads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from flwr.common import FitRes
from numpy.typing import NDArray

from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import Layout, NamedArrays
from fedsa_lora.exchange.wire import MAX_EXAMPLES
from fedsa_lora.group import CHANGEABLE, Group, at_least, more_than
from strategies.round.admission import Admission, Remark, Res
from strategies.round.reasons import causes
from strategies.rules.updates import Update

if TYPE_CHECKING:
    from fedsa_lora.settings import RunConfig

OUTLYING = 30.0  # medians of a round from which on an update is named where a run goes wrong
REJECTED, UPLOADS = "rejected/", "uploads"  # in the memory of a checkpoint: by client, and of all


@dataclass(frozen=True)
class Bounds(Group):
    """Largest upload that is accepted.

    ``norm``: the L2 norm of an update; ``median_factor``: the same as a multiple of the round's median.
    Given both, the smaller one counts; None: no bound. Larger updates are rejected, or clipped to the bound
    (``action``; arXiv:1911.07963). ``max_examples`` is the most that a client may report for training or
    evaluation, as they are its weight in a mean.
    With more rejections than ``max_rejections`` of all uploads of the run so far it ends; None: never.
    """

    norm: Annotated[float | None, more_than(0)] = None
    median_factor: Annotated[float | None, at_least(1)] = None
    action: Literal["reject", "clip"] = "reject"
    max_examples: Annotated[int, at_least(1, MAX_EXAMPLES)] = MAX_EXAMPLES
    max_rejections: Annotated[float | None, at_least(0, 1), CHANGEABLE] = None

    def describe(self) -> dict[str, str]:
        norms = [] if self.norm is None else [f"{self.norm:g}"]
        norms += [] if self.median_factor is None else [f"{self.median_factor:g} x the median"]
        acted = "rejected" if self.action == "reject" else "clipped"
        norm = f"norm beyond {' or '.join(norms)} {acted}" if norms else "no bound on norms"
        return {"bounds": f"{norm}, up to {self.max_examples:,} examples a client"}

    def clashes(self, run: RunConfig) -> Iterator[str]:
        sampled = run.strategy.sampled(run.federation.clients)
        if self.median_factor is not None and sampled < 3:
            yield (
                f"bounds.median_factor: a median of {sampled} clients a round cannot identify outliers; "
                f"expected at least 3, or bounds.norm"
            )
        if self.median_factor is not None and run.codec.may_send_nothing:
            yield (
                "bounds.median_factor: with codec=threshold most clients may send nothing, and the median "
                "would be 0; expected another codec, or bounds.norm"
            )
        normed = self.norm is not None or self.median_factor is not None
        if run.personalisation.mixes and normed and self.action == "clip":
            yield (
                f"bounds.action: {type(run.personalisation).__name__} takes a client's own part off the "
                "mean, which clipping alters; expected bounds.action=reject"
            )


def bounded(admission: Admission[FitRes], layout: Layout, bounds: Bounds) -> Admission[FitRes]:
    """The admission without the answers that exceed a bound, or with their updates clipped to it."""
    within = believed(admission, bounds)
    if bounds.norm is None and bounds.median_factor is None:
        return within
    return _within_norm(within, layout, bounds)


def believed(admission: Admission[Res], bounds: Bounds) -> Admission[Res]:
    """The admission without the answers that claim more than ``max_examples``, trained or measured on."""
    remarks = []
    for header in (answer.header for answer in admission.answers):
        if header.examples > bounds.max_examples:
            told = f"claims {header.examples} examples, expected 1 to {bounds.max_examples}"
            remarks.append(Remark(header.client, "rejected", told))
        elif header.measured > bounds.max_examples:
            told = f"was measured on {header.measured} examples, expected 0 to {bounds.max_examples}"
            remarks.append(Remark(header.client, "rejected", told))
    return _without(admission, remarks)


def outlier(updates: Sequence[Update]) -> str:
    """A sentence on the largest update of a round where it is far from the others; else nothing."""
    norms = [_norm(update) for update in updates]
    if len(norms) < 3 or not (median := float(np.median(norms))):
        return ""
    at = int(np.argmax(norms))
    ratio = norms[at] / median
    if ratio < OUTLYING:
        return ""
    return (
        f"the update of client {updates[at].client} has a norm of {norms[at]:.3g}, {ratio:.3g} times the "
        "median of its round: bounds=median rejects or clips such"
    )


def _within_norm(admission: Admission[FitRes], layout: Layout, bounds: Bounds) -> Admission[FitRes]:
    updates = [answer.value for answer in admission.answers]
    measured = zip(updates, *norms_and_limits(layout, updates, bounds), strict=True)
    over = {u.client: (norm, limit) for u, norm, limit in measured if norm > limit}
    kind: Literal["rejected", "clipped"] = "rejected" if bounds.action == "reject" else "clipped"
    remarks = [
        Remark(client, kind, f"sent an update of norm {norm:.4g}, and the bound is {limit:.4g}")
        for client, (norm, limit) in over.items()
    ]
    if bounds.action == "reject":
        return _without(admission, remarks)
    shares = {client: limit / norm for client, (norm, limit) in over.items()}
    answers = [replace(a, value=_scaled(a.value, shares.get(a.header.client))) for a in admission.answers]
    return admission.with_remarks(answers, remarks)


def norms_and_limits(
    layout: Layout, updates: Sequence[Update], bounds: Bounds
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The L2 norm of each update and the most that it may be, (clients,) each.

    The median for a client is that of what all clients of the round sent of the tensors that it shares,
    itself included, as if each had as many values there: where all share the same, of their norms.
    """
    squares = np.array([_squares(layout, update) for update in updates]).reshape(len(updates), -1)
    sizes = np.array([_sizes(layout, update) for update in updates], float).reshape(squares.shape)
    norms = np.sqrt(squares.sum(axis=1))
    limits = np.full(len(updates), np.inf if bounds.norm is None else bounds.norm)
    if bounds.median_factor is not None:
        limits = np.minimum(limits, bounds.median_factor * _medians(squares, sizes))
    return norms, limits


def _medians(squares: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median norm for each client, from the square sums and the numbers of values by client and tensor;
    0 for a client that shares nothing."""
    means = np.divide(squares, sizes, out=np.zeros_like(squares), where=sizes > 0)
    covered = (sizes > 0) @ sizes.T  # how many values of client k are of tensors that client j shares too
    scale = np.divide(sizes.sum(axis=1), covered, out=np.zeros_like(covered), where=covered > 0)
    norms = np.sqrt((means @ sizes.T) * scale)
    columns = zip(norms.T, covered.T > 0, strict=True)
    return np.array([np.median(norm[known]) if known.any() else 0.0 for norm, known in columns])


def _squares(layout: Layout, update: Update) -> list[float]:
    """The square sum of each tensor's values, in float64: a finite float32 cannot overflow it."""
    parts = (update.values[update.within(layout.span(name))].astype(np.float64) for name in layout.names)
    return [float(part @ part) for part in parts]


def _norm(update: Update) -> float:
    """The L2 norm of all values, in float64."""
    values = update.values.astype(np.float64)
    return math.sqrt(values @ values)


def _sizes(layout: Layout, update: Update) -> list[int]:
    """Number of values of each tensor that the client has to share, sent or left out by its codec."""
    return [spec.size * (spec.name in update.shared) for spec in layout.limited(update.rank)]


def _scaled(update: Update, share: float | None) -> Update:
    return update if share is None else replace(update, values=update.values * np.float32(share))


def _without(admission: Admission[Res], remarks: Sequence[Remark]) -> Admission[Res]:
    """The admission with the answers of these clients rejected."""
    gone = {remark.client for remark in remarks}
    answers = [answer for answer in admission.answers if answer.header.client not in gone]
    return admission.with_remarks(answers, remarks)


class Rejections:
    """Counts the uploads of a run and those of each client that were rejected."""

    def __init__(self, most: float | None) -> None:
        self.most = most
        self._uploads = 0
        self._rejected: Counter[str] = Counter()

    def count(self, admission: Admission[FitRes]) -> None:
        """Add a round. Raises RunError when more than a share ``most`` of all uploads so far is rejected."""
        self._uploads += len(admission.answers) + len(admission.rejected)
        self._rejected.update(str(remark.client) for remark in admission.rejected)
        total = self._rejected.total()
        if self.most is not None and total > self.most * self._uploads:
            by_client = ", ".join(f"client {name}: {n}" for name, n in sorted(self._rejected.items()))
            raise RunError(
                f"{total} of {self._uploads} uploads were rejected ({by_client}), and "
                f"bounds.max_rejections={self.most:g} ends the run; in this round\n"
                + "\n".join(causes(admission.rejected))
            )

    def state(self) -> dict[str, NDArray[Any]]:
        """The counts as arrays; nothing where they decide nothing."""
        if self.most is None:
            return {}
        counts = {REJECTED + client: np.array([n]) for client, n in self._rejected.items()}
        return counts | {UPLOADS: np.array([self._uploads])}

    def restore(self, memory: NamedArrays) -> None:
        """Resume from what ``state`` gave."""
        counts = {n.removeprefix(REJECTED): int(a[0]) for n, a in memory.items() if n.startswith(REJECTED)}
        self._rejected = Counter(counts)
        self._uploads = int(memory[UPLOADS][0]) if UPLOADS in memory else 0
