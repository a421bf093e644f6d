"""Measures of personalisation, against NumPy, scikit-learn and sums by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import confusion_matrix, recall_score

from fedsa_lora.runs.measures import confusion, first_at, gains, harmed, interval, spread

ACCURACIES = st.lists(st.floats(0, 1), min_size=1, max_size=40)
SHARES = st.lists(st.sampled_from([n / 70 for n in range(71)]), min_size=1, max_size=40)  # of 70 examples


def named(values) -> dict[str, float]:
    return {f"{n:02d}": value for n, value in enumerate(values)}


def test_a_spread_by_hand():
    found = spread({"a": 0.2, "b": 0.4, "c": 0.9}, {"a": 10, "b": 30, "c": 60})
    assert (found.clients, found.worst, found.worst_client) == (3, 0.2, "a")
    assert found.mean == pytest.approx(0.5)
    assert found.weighted == pytest.approx((2 + 12 + 54) / 100)
    assert found.std == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 3))
    assert found.jain == pytest.approx(1.5**2 / (3 * (0.04 + 0.16 + 0.81)))
    shares = [0.2 / 1.5, 0.4 / 1.5, 0.9 / 1.5]
    assert found.entropy == pytest.approx(-sum(p * math.log(p, 3) for p in shares))


@given(ACCURACIES)
def test_a_spread_is_that_of_numpy(values):
    found = spread(named(values))
    assert found.mean == found.weighted == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values), abs=1e-12)
    assert found.worst == min(values)
    np.testing.assert_allclose(found.deciles, np.percentile(values, range(10, 100, 10)))


@given(ACCURACIES, st.randoms())
def test_the_order_of_the_clients_says_nothing(values, random):
    clients = list(named(values).items())
    examples = {name: 1 + n for n, (name, _) in enumerate(clients)}
    expected = spread(dict(clients), examples)
    random.shuffle(clients)
    assert spread(dict(clients), examples) == expected


@given(ACCURACIES)
def test_fairness_is_within_its_bounds_and_blind_to_scale(values):
    found, halved = spread(named(values)), spread(named(v / 2 for v in values))
    assert 1 / len(values) - 1e-9 <= found.jain <= 1 + 1e-9
    assert -1e-9 <= found.entropy <= 1 + 1e-9
    if min(values) > 1e-100:  # whose square is still a number
        assert halved.jain == pytest.approx(found.jain)
        assert halved.entropy == pytest.approx(found.entropy)


@pytest.mark.parametrize("value", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("clients", [1, 2, 11])
def test_equal_clients_are_perfectly_fair(value, clients):
    found = spread(named([value] * clients))
    assert (found.jain, found.entropy) == (pytest.approx(1), pytest.approx(1))
    assert found.std == pytest.approx(0, abs=1e-12)
    assert found.worst_tenth == pytest.approx(value)


@pytest.mark.parametrize("clients", [2, 5, 30])
def test_one_client_that_has_everything_is_as_unfair_as_can_be(clients):
    found = spread(named([1.0] + [0.0] * (clients - 1)))
    assert found.jain == pytest.approx(1 / clients)
    assert found.entropy == 0


@pytest.mark.parametrize(("clients", "worst"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_the_worst_tenth_is_rounded_up(clients, worst):
    found = spread(named(reversed([n / clients for n in range(clients)])))
    assert found.worst_tenth == pytest.approx(np.mean([n / clients for n in range(worst)]))


def test_of_several_worst_clients_the_first_by_name_is_told():
    assert spread({"b": 0.1, "a": 0.1, "c": 0.5}).worst_client == "a"


def test_gains_are_of_clients_that_have_both():
    found = gains({"a": 0.5, "b": 0.75, "c": 1.0}, {"b": 0.5, "a": 0.75, "d": 0.0})
    assert found == {"a": -0.25, "b": 0.25}
    assert list(found) == ["a", "b"]


def test_a_client_as_good_as_alone_is_not_harmed():
    assert harmed({"a": 0.5, "b": 0.4, "c": 0.6}, {"a": 0.5, "b": 0.5, "c": 0.5}) == pytest.approx(1 / 3)
    assert harmed({"a": 0.5}, {}) is None


def test_rounding_harms_nobody():
    alone = {"a": 3.0, "b": 3.0, "c": 0.0}
    assert harmed({**alone, "a": 3.0 + 1e-6}, alone, higher_is_better=False) == 0
    assert harmed({**alone, "a": 3.0 + 1e-4}, alone, higher_is_better=False) == pytest.approx(1 / 3)


@given(SHARES, SHARES)
def test_who_is_harmed_one_way_gains_the_other_way(ours, alone):
    one, two = gains(named(ours), named(alone)), gains(named(alone), named(ours))
    assert one == {name: -gain for name, gain in two.items()}
    equal = sum(gain == 0 for gain in one.values()) / len(one)
    assert harmed(named(ours), named(alone)) + harmed(named(alone), named(ours)) == pytest.approx(1 - equal)


@pytest.mark.parametrize("n", [2, 3, 10, 40])
def test_the_interval_is_students_over_pairs(n):
    x = np.random.default_rng(n).normal(0.05, 0.1, n)
    assert interval(x) == pytest.approx(stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x)))


def test_equal_differences_are_told_from_nothing_from_the_number_on_with_which_a_sign_test_tells_them():
    fewest = next(n for n in range(1, 20) if stats.binomtest(n, n).pvalue < 0.05)
    rounded = [0.75 - 0.5, 0.65 - 0.4, 0.95 - 0.7]  # all .25 but for rounding
    for n in range(1, fewest):
        assert interval((rounded * n)[:n]) == (-math.inf, math.inf)
    assert interval((rounded * fewest)[:fewest]) == pytest.approx((0.25, 0.25))
    for n in range(2, fewest + 1):
        assert interval([0.0] * n) == (0.0, 0.0)


def test_a_target_is_reached_when_it_is_first():
    curve = [(100.0, 0.2), (200.0, 0.6), (300.0, 0.5), (400.0, 0.9)]
    assert first_at(curve, 0.6) == 200
    assert first_at(curve, 0.61) == 400
    assert first_at(curve, 0.91) is None
    assert first_at([], 0.0) is None


@given(ACCURACIES, ACCURACIES)
def test_where_lower_is_better_all_is_as_of_the_opposite_values(ours, alone):
    mine, theirs = named(ours), named(alone)
    turned, of_alone = named(-v for v in ours), named(-v for v in alone)
    low, high = spread(mine, higher_is_better=False), spread(turned)
    assert (low.worst, low.worst_client) == (-high.worst, high.worst_client)
    assert low.worst_tenth == pytest.approx(-high.worst_tenth)
    assert low.mean == pytest.approx(-high.mean)
    assert gains(mine, theirs, higher_is_better=False) == gains(turned, of_alone)
    assert harmed(mine, theirs, higher_is_better=False) == harmed(turned, of_alone)
    curve = list(enumerate(ours))
    opposite = [(n, -v) for n, v in curve]
    for target in alone:
        assert first_at(curve, target, higher_is_better=False) == first_at(opposite, -target)


def test_negative_values_are_no_shares():
    found = spread({"a": -0.5, "b": 0.5})
    assert (found.jain, found.entropy, found.mean) == (None, None, 0.0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_a_confusion_is_that_of_scikit_learn(pairs):
    labels, predicted = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    counts = confusion(labels, predicted, 5)
    np.testing.assert_array_equal(counts, confusion_matrix(labels, predicted, labels=range(5)))
    held = np.unique(labels)
    recalls = recall_score(labels, predicted, labels=held, average=None, zero_division=0.0)
    np.testing.assert_allclose((counts.diagonal() / np.maximum(counts.sum(axis=1), 1))[held], recalls)
