"""Numbers of unlearning against their published formulas, and against a library where there is one."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedsa_lora.analysis.forgotten import (
    Known,
    forget_quality,
    log_truth_ratio,
    min_k,
    nll,
    privleak,
    separation,
    utility,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def ragged(rng, n: int = 7, longest: int = 9, scale: float = 2.0) -> np.ndarray:
    """Losses of answers of different lengths."""
    losses = rng.exponential(scale, (n, longest))
    losses[np.arange(longest)[None, :] >= rng.integers(3, longest + 1, n)[:, None]] = np.nan
    return losses


def test_the_truth_ratio_is_the_published_one_where_that_is_right(rng):
    """OpenUnlearning: exp(-mean loss of the wrong answers) / (exp(-loss of the paraphrase) + 1e-10)."""
    paraphrase, wrong = ragged(rng), [ragged(rng) for _ in range(5)]
    published = np.exp(-np.mean([nll(w) for w in wrong], axis=0)) / (np.exp(-nll(paraphrase)) + 1e-10)
    assert np.allclose(np.exp(log_truth_ratio(paraphrase, wrong)), published, rtol=1e-7)


def test_the_truth_ratio_of_two_impossible_answers_is_not_0(rng):
    paraphrase = ragged(rng) + 50
    assert np.allclose(log_truth_ratio(paraphrase, [paraphrase + 1]), -1)
    published = np.exp(-nll(paraphrase) - 1) / (np.exp(-nll(paraphrase)) + 1e-10)
    assert (published < 1e-10).all()


def test_what_is_reported_of_facts(rng):
    known = Known(nll=np.array([0.0, np.log(4)]), log_truth=np.log([0.25, 2.0]))
    found = known.numbers()
    assert found["probability"] == pytest.approx((1 + 0.25) / 2)
    assert found["truth_forget"] == pytest.approx((0.25 + 0.5) / 2)  # mean of min(R, 1/R)
    assert found["truth_retain"] == pytest.approx((0.75 + 0) / 2)  # mean of max(0, 1 - R)
    assert found["truth_ratio"] == pytest.approx(np.sqrt(0.5))
    huge = Known(nll=np.array([900.0]), log_truth=np.array([900.0])).numbers()
    assert np.isfinite([*huge.values()]).all()


def test_min_k_is_the_mean_of_the_least_likely_tokens():
    losses = np.array([[5.0, 1.0, 2.0, 3.0, 4.0], [7.0, 1.0, np.nan, np.nan, np.nan]])
    assert min_k(losses, 0.4).tolist() == [4.5, 7.0]


def test_separation_is_the_area_under_the_curve(rng):
    members, others = rng.normal(0, 1, 31).round(1), rng.normal(0.7, 1, 17).round(1)
    truth = [1] * len(members) + [0] * len(others)
    assert separation(members, others) == pytest.approx(roc_auc_score(truth, -np.r_[members, others]))
    assert separation(members, members) == 0.5


def test_privleak_is_0_where_members_are_as_hidden_as_in_the_retrained_model():
    assert privleak(0.6, 0.6) == 0
    assert privleak(1.0, 0.5) == -100
    assert privleak(0.25, 0.5) == 50
    assert privleak(0.25, 1.0) is None


def test_forget_quality_and_utility(rng):
    same = rng.normal(size=40)
    assert forget_quality(same, same) == pytest.approx(1)
    assert forget_quality(same, same + 5) < 1e-12
    assert utility([0.5, 1.0, 1.0]) == pytest.approx(3 / (2 + 1 + 1))
    assert utility([0.0, 1.0]) == 0
