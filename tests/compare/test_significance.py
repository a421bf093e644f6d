"""Tests and intervals over pairs, against plain computations."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsa_lora.compare.significance import holm, paired
from fedsa_lora.runs.measures import standard_error

PS = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_holm_by_hand():
    # ordered .005 .011 .02 .04: times 4, 3, 2, 1 = .02 .033 .04 .04; a second .04 would be .04 as well
    assert holm([0.04, 0.005, 0.02, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@given(PS, st.randoms())
def test_holm_keeps_the_order_is_at_most_bonferroni_and_knows_no_order_of_methods(p, random):
    adjusted = holm(p)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True))
    assert all(a <= min(1, len(p) * b) + 1e-15 for a, b in zip(adjusted, p, strict=True))
    assert [a for _, a in sorted(zip(p, adjusted, strict=True))] == sorted(adjusted)
    order = random.sample(range(len(p)), len(p))
    assert holm([p[i] for i in order]) == pytest.approx([adjusted[i] for i in order])


def signed_rank_p(x: np.ndarray) -> float:
    """Two-sided, by going through every choice of signs."""
    ranks = np.argsort(np.argsort(np.abs(x))) + 1
    sums = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in _signs(len(x))]
    found = ranks[x > 0].sum()
    low, high = np.mean([s <= found for s in sums]), np.mean([s >= found for s in sums])
    return min(1.0, 2 * min(low, high))


def _signs(n: int):
    return itertools.product((0, 1), repeat=n)


@pytest.mark.parametrize("seed", range(4))
def test_the_test_is_wilcoxons_over_all_signs(seed):
    x = np.random.default_rng(seed).normal(0.5, 1, 8)
    assert paired(x).p == pytest.approx(signed_rank_p(x))


def test_the_interval_is_students():
    difference = paired([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2  # t of 3 degrees of freedom at .975; the sample's deviation
    assert (difference.low, difference.mean, difference.high) == pytest.approx((2.5 - half, 2.5, 2.5 + half))


def test_the_other_way_round_is_the_same_difference():
    x = [0.1, -0.2, 0.3, 0.0, 0.25]
    there, back = paired(x), paired([-value for value in x])
    assert (back.mean, back.low, back.high, back.p) == pytest.approx(
        (-there.mean, -there.high, -there.low, there.p)
    )


def test_what_never_differs_and_a_single_pair_tell_nothing():
    assert paired([0.0] * 5).p == 1.0
    alone = paired([0.3])
    assert (alone.mean, alone.low, alone.high, alone.p) == (0.3, -math.inf, math.inf, 1.0)
    assert standard_error([0.3]) == math.inf
