"""Numbers that say how much a model knows of facts, from the losses of its answers token by token.

Formulas are those of OpenUnlearning (arXiv:2506.12618). Losses are (n, longest) in nats, NaN behind the end
of an answer and where a token has no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Losses = NDArray[np.float64]
LARGEST = 500  # log of a ratio that is told apart from larger ones: those are no float64


@dataclass(frozen=True)
class Known:
    """Knowledge of n facts: ``nll`` is the mean loss by token of each answer, (n,), and ``log_truth`` the log
    of each truth ratio, (n,), as ``log_truth_ratio`` has it."""

    nll: Losses
    log_truth: Losses

    def numbers(self) -> dict[str, float]:
        """Means over the facts: ``nll``, ``probability`` exp(-nll), ``truth_ratio`` the median R, and the
        two means of it that are reported, ``truth_forget`` of min(R, 1/R) and ``truth_retain`` of
        max(0, 1 - R)."""
        ratio = np.exp(np.minimum(self.log_truth, LARGEST))
        return {
            "nll": float(self.nll.mean()),
            "probability": float(np.exp(-self.nll).mean()),
            "truth_ratio": float(np.exp(min(np.median(self.log_truth), LARGEST))),
            "truth_forget": float(np.exp(-np.abs(self.log_truth)).mean()),
            "truth_retain": float(np.maximum(0, 1 - ratio).mean()),
        }


def nll(losses: Losses) -> Losses:
    """The mean loss by token of each answer, (n,)."""
    mean: Losses = np.nanmean(losses, axis=1)
    return mean


def log_truth_ratio(paraphrase: Losses, wrong: Sequence[Losses]) -> Losses:
    """The log of R = exp(-mean nll of the wrong answers) / exp(-nll of the paraphrase), (n,).

    The published form adds 1e-10 to the denominator, which makes the ratio of two answers that have both
    become impossible 0; the log of it is right at any loss.
    """
    mean_wrong = np.mean([nll(each) for each in wrong], axis=0)
    ratio: Losses = nll(paraphrase) - mean_wrong
    return ratio


def min_k(losses: Losses, share: float = 0.2) -> Losses:
    """The mean of the largest ``share`` of the losses of each answer, at least one, (n,): Min-K %
    (arXiv:2310.16789)."""
    found = []
    for row in losses:
        known = np.sort(row[~np.isnan(row)])[::-1]
        found.append(known[: max(1, int(len(known) * share))].mean())
    return np.array(found)


def separation(members: Losses, others: Losses) -> float:
    """The area under the curve of separating members from others by their smaller loss: the share of pairs in
    which that is right, ties half."""
    below = (members[:, None] < others[None, :]).mean()
    equal = (members[:, None] == others[None, :]).mean()
    return float(below + equal / 2)


def privleak(auc: float, retrained: float) -> float | None:
    """((1 - AUC) - (1 - AUC of the retrained model)) / (1 - AUC of the retrained model), in percent: 0 is
    right, less is a leak, more is forgetting that can be seen."""
    if retrained == 1:
        return None  # the retrained model tells them apart as well
    return 100 * ((1 - auc) - (1 - retrained)) / (1 - retrained)


def forget_quality(log_truth: Losses, retrained: Losses) -> float:
    """The p-value of the two-sample Kolmogorov-Smirnov test between the truth ratios of a model and those of
    the retrained one: near 1 they cannot be told apart."""
    return float(stats.ks_2samp(log_truth, retrained).pvalue)


def utility(parts: Sequence[float]) -> float:
    """The harmonic mean of measures of what is kept; 0 where one is."""
    return float(stats.hmean(parts)) if min(parts) > 0 else 0.0
