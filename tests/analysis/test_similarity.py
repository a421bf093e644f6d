"""Similarity of matrices, against angles that are known and scikit-learn's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles
from sklearn.metrics.pairwise import cosine_similarity

from fedsa_lora.analysis.similarity import basis, cosine, factor, over_pairs, overlap


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(st.integers(0, 999), st.floats(0.1, 10))
def test_a_cosine_is_that_of_scikit_learn_and_blind_to_length(seed, length):
    one, two = drawn(seed, 3, 5), drawn(seed + 1, 3, 5)
    expected = cosine_similarity(one.reshape(1, -1), two.reshape(1, -1))[0, 0]
    assert cosine(one, two) == pytest.approx(expected, abs=1e-6)
    assert cosine(length * one, two) == pytest.approx(cosine(one, two), abs=1e-6)
    assert cosine(one, -one) == pytest.approx(-1)


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(1, 4), st.integers(5, 9))
def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles(seed, rank, size):
    one, two = drawn(seed, size, rank), drawn(seed + 1, size, rank)
    expected = np.square(np.cos(subspace_angles(one, two))).mean()
    assert overlap(basis(one), basis(two)) == pytest.approx(expected, abs=1e-5)


@given(st.integers(0, 999))
def test_a_space_is_the_same_in_any_basis(seed):
    matrix, mixing = drawn(seed, 9, 3), np.eye(3) + 0.1 * drawn(seed + 1, 3, 3)
    assert overlap(basis(matrix), basis(matrix @ mixing)) == pytest.approx(1, abs=1e-4)


def test_orthogonal_spaces_do_not_overlap_and_a_space_holds_its_part():
    axes = np.eye(6)
    assert overlap(basis(axes[:, :2]), basis(axes[:, 2:5])) == 0
    assert overlap(basis(axes[:, :2]), basis(axes[:, :5])) == 1
    assert overlap(basis(axes[:, :2]), basis(axes[:, 1:3])) == 0.5


def test_random_spaces_overlap_by_rank_over_size():
    found = over_pairs(overlap, [basis(drawn(seed, 64, 8)) for seed in range(30)])
    assert found == pytest.approx(8 / 64, abs=0.01)


def test_what_is_not_there_has_no_similarity():
    zero = np.zeros((4, 2), np.float32)
    assert basis(zero).shape == (4, 0)
    assert basis(np.outer(np.ones(4), np.ones(2))).shape == (4, 1)
    assert math.isnan(overlap(basis(zero), basis(drawn(0, 4, 2))))
    assert math.isnan(cosine(zero, zero))
    assert math.isnan(over_pairs(cosine, [zero]))


def test_pairs_without_a_value_do_not_count():
    one, zero = np.ones(3), np.zeros(3)
    assert over_pairs(cosine, [one, one, zero]) == pytest.approx(1)


def test_pairs_are_of_different_clients_or_of_one_of_each_run():
    def product(a: float, b: float) -> float:
        return a * b

    assert over_pairs(product, [1.0, 2.0, 3.0]) == pytest.approx((2 + 3 + 6) / 3)
    assert over_pairs(product, [1.0, 2.0], [10.0, 30.0]) == pytest.approx((10 + 30 + 20 + 60) / 4)


def test_a_is_told_by_its_rows_and_b_by_its_columns():
    assert factor(drawn(0, 8, 384), "A").shape == (384, 8)
    assert factor(drawn(0, 256, 8), "B").shape == (256, 8)
    assert factor(drawn(0, 8, 16, 3, 3), "A").shape == (144, 8)
    assert factor(drawn(0, 32, 8, 1, 1), "B").shape == (32, 8)
