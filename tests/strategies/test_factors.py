"""Laws of products that are never formed, against the dense products of small ones in float64."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsa_lora.errors import LayoutError
from strategies.rules.factors import Factors, aggregation_error, align, norm, residual, stack, truncate

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))  # d_out, d_in
RANKS = st.lists(st.integers(0, 6), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**32 - 1)


def random(rng: np.random.Generator, rank: int, d_out: int = 12, d_in: int = 9) -> Factors:
    return Factors(rng.normal(size=(rank, d_in)), rng.normal(size=(d_out, rank)))


def several(
    seed: int, ranks: list[int], shape: tuple[int, int] = (12, 9)
) -> tuple[list[Factors], list[float]]:
    """Factors of these ranks, and weights with sum 1."""
    rng = np.random.default_rng(seed)
    return [random(rng, rank, *shape) for rank in ranks], rng.dirichlet(np.ones(len(ranks))).tolist()


def dense(factors: Factors) -> np.ndarray:
    return factors.B.astype(np.float64) @ factors.A.astype(np.float64)


def dense_sum(factors: list[Factors], weights: list[float]) -> np.ndarray:
    return sum(weight * dense(part) for part, weight in zip(factors, weights, strict=True))


def mean(factors: list[Factors], weights: list[float]) -> Factors:
    return Factors(*(np.average([getattr(f, x) for f in factors], 0, weights) for x in "AB"))


def rotation(rng: np.random.Generator, rank: int) -> np.ndarray:
    """An orthogonal matrix, uniform over rotations and reflections."""
    q, r = np.linalg.qr(rng.normal(size=(rank, rank)))
    return q * np.sign(np.diag(r))


# --- factors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"), [((2, 5), (7, 3)), ((2, 5, 1), (7, 2)), ((2,), (7, 2))], ids=["ranks differ", "4-d", "vector"]
)
def test_what_has_no_product_is_no_pair_of_factors(a, b):
    with pytest.raises(LayoutError, match=r"expected A \(r, d_in\) and B \(d_out, r\), got \(2,"):
        Factors(np.zeros(a), np.zeros(b))


# --- stack and residual ------------------------------------------------------------------------------


@given(SEEDS, RANKS, SHAPES)
def test_a_stack_is_the_sum_of_the_products_and_its_rank_that_of_all(seed, ranks, shape):
    factors, weights = several(seed, ranks, shape)
    stacked = stack(factors, weights)
    np.testing.assert_allclose(dense(stacked), dense_sum(factors, weights), atol=1e-12)
    assert stacked.rank == sum(ranks)


def test_components_that_pad_a_rank_are_left_out():
    factors, weights = several(0, [2, 4])
    small = factors[0]
    padded = Factors(np.pad(small.A, ((0, 2), (0, 0))), np.pad(small.B, ((0, 0), (0, 2))))
    half = Factors(np.concatenate([small.A, np.ones((1, 9))]), np.pad(small.B, ((0, 0), (0, 1))))
    for form in (padded, half):
        stacked = stack([form, factors[1]], weights)
        assert stacked.rank == 6
        assert np.array_equal(dense(stacked), dense(stack(factors, weights)))


@given(SEEDS, st.integers(1, 5), st.integers(1, 4), SHAPES)
def test_the_mean_and_its_residual_are_the_sum(seed, clients, rank, shape):
    factors, weights = several(seed, [rank] * clients, shape)
    average = mean(factors, weights)
    rest = residual(factors, weights, average)
    np.testing.assert_allclose(dense(rest) + dense(average), dense_sum(factors, weights), atol=1e-12)
    assert rest.rank == (clients + 1) * rank


def test_the_residual_holds_whatever_the_mean_is():
    factors, weights = several(0, [3, 1, 2])
    other = random(np.random.default_rng(9), 4)
    rest = residual(factors, weights, other)
    np.testing.assert_allclose(dense(rest) + dense(other), dense_sum(factors, weights), atol=1e-12)


# --- truncate ----------------------------------------------------------------------------------------


@given(SEEDS, st.integers(1, 8), st.integers(1, 8), SHAPES)
def test_a_truncation_is_the_best_approximation_of_its_rank(seed, full, rank, shape):
    """Eckart-Young: the error is that of the dense SVD, the root of the squares of what is left out."""
    product = random(np.random.default_rng(seed), full, *shape)
    short = truncate(product, rank)
    left_out = np.linalg.svd(dense(product), compute_uv=False)[rank:]
    error = np.linalg.norm(dense(product) - dense(short))
    assert error == pytest.approx(np.linalg.norm(left_out), abs=1e-10)
    assert short.rank == min(rank, full, *shape)


@given(SEEDS, st.integers(1, 8), SHAPES)
def test_components_are_orthogonal_ordered_and_of_fixed_sign(seed, full, shape):
    short = truncate(random(np.random.default_rng(seed), full, *shape), full)
    np.testing.assert_allclose(short.A @ short.A.T, np.eye(short.rank), atol=1e-12)
    gram = short.B.T @ short.B
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9)
    assert (np.diff(np.diag(gram)) <= 1e-9).all()
    assert (np.take_along_axis(short.A, np.abs(short.A).argmax(1)[:, None], 1) > 0).all()


@given(SEEDS, st.integers(1, 5))
def test_the_same_product_gives_the_same_components_whatever_its_factors(seed, rank):
    rng = np.random.default_rng(seed)
    product, mix = random(rng, rank), rotation(rng, rank) * rng.uniform(0.5, 2.0, rank)
    again = truncate(Factors(np.linalg.inv(mix) @ product.A, product.B @ mix), rank)
    short = truncate(product, rank)
    gaps = -np.diff(np.linalg.norm(short.B, axis=0), append=0.0)
    distinct = np.linalg.norm(short.B) * 1e-3 < gaps.min()
    np.testing.assert_allclose(dense(again), dense(short), atol=1e-9)
    if distinct:  # else components may turn into one another
        np.testing.assert_allclose(again.A, short.A, atol=1e-8)
        np.testing.assert_allclose(again.B, short.B, atol=1e-8)


@given(SEEDS, st.integers(1, 6), st.integers(1, 3))
def test_recompressing_keeps_the_product_and_finds_its_rank(seed, rank, copies):
    """A sum of the same product many times over has the rank of one; float32 sees no difference."""
    product = random(np.random.default_rng(seed), rank)
    small = truncate(stack([product] * copies, [1.0] * copies))
    assert small.rank == min(rank, 9)
    np.testing.assert_allclose(dense(small), copies * dense(product), rtol=0, atol=1e-5)


def test_recompressing_drops_what_float32_cannot_hold_and_nothing_else():
    basis = truncate(random(np.random.default_rng(0), 4), 4)
    sizes = np.array([1.0, 1e-3, 1e-6, 1e-9])
    spread = Factors(basis.A, basis.B / np.linalg.norm(basis.B, axis=0) * sizes)
    assert truncate(spread).rank == 3
    assert truncate(spread, 4).rank == 4


def test_what_cancels_leaves_no_component():
    product = random(np.random.default_rng(0), 3)
    assert truncate(residual([product, product], [0.25, 0.75], product)).rank == 0
    rounded = Factors(product.A.astype(np.float32), product.B.astype(np.float32))
    assert truncate(residual([product], [1.0], rounded)).rank == 0


@pytest.mark.parametrize("rank", [None, 3])
def test_no_components_stay_none(rank):
    nothing = Factors(np.zeros((0, 9)), np.zeros((12, 0)))
    assert truncate(nothing, rank).rank == 0
    assert truncate(nothing, rank).A.shape == (0, 9)


# --- align -------------------------------------------------------------------------------------------


def distance(factors: Factors, reference: Factors) -> float:
    """||B - B_ref||^2 + ||A - A_ref||^2."""
    return float(np.sum((factors.B - reference.B) ** 2) + np.sum((factors.A - reference.A) ** 2))


@given(SEEDS, st.integers(1, 6))
def test_alignment_is_a_rotation_and_keeps_the_product(seed, rank):
    rng = np.random.default_rng(seed)
    product, reference = random(rng, rank), random(rng, rank)
    turned = align(product, reference)
    np.testing.assert_allclose(dense(turned), dense(product), atol=1e-11)
    q = np.linalg.lstsq(product.B, turned.B)[0]  # full column rank: the one Q with B Q = turned.B
    np.testing.assert_allclose(q @ q.T, np.eye(rank), atol=1e-8)
    np.testing.assert_allclose(q.T @ product.A, turned.A, atol=1e-8)


@given(SEEDS, st.integers(1, 6))
def test_no_other_rotation_comes_closer_to_the_reference(seed, rank):
    rng = np.random.default_rng(seed)
    product, reference = random(rng, rank), random(rng, rank)
    best = distance(align(product, reference), reference)
    assert best <= distance(product, reference) + 1e-9
    for _ in range(200):
        q = rotation(rng, rank)
        assert best <= distance(Factors(q.T @ product.A, product.B @ q), reference) + 1e-9


def test_the_joint_optimum_is_not_that_of_one_factor_alone():
    """The rotation that suits B best and the one that suits A best are both worse for the pair."""
    rng = np.random.default_rng(0)
    product, reference = random(rng, 4), random(rng, 4)
    best = distance(align(product, reference), reference)
    nothing = {"A": np.zeros_like(reference.A), "B": np.zeros_like(reference.B)}
    for kept in ("A", "B"):
        alone = Factors(**(nothing | {kept: getattr(reference, kept)}))
        assert distance(align(product, alone), reference) > best + 0.1


@given(SEEDS, st.integers(1, 6))
def test_a_rotated_copy_is_turned_back(seed, rank):
    rng = np.random.default_rng(seed)
    reference, q = random(rng, rank), rotation(rng, rank)
    back = align(Factors(q.T @ reference.A, reference.B @ q), reference)
    np.testing.assert_allclose(back.A, reference.A, atol=1e-9)
    np.testing.assert_allclose(back.B, reference.B, atol=1e-9)


def test_a_reference_without_B_aligns_by_A_and_one_without_both_turns_nothing():
    rng = np.random.default_rng(0)
    product, q = random(rng, 3), rotation(rng, 3)
    start = Factors(product.A, np.zeros_like(product.B))
    turned = align(Factors(q.T @ product.A, product.B @ q), start)
    np.testing.assert_allclose(turned.A, product.A, atol=1e-12)
    np.testing.assert_allclose(turned.B, product.B, atol=1e-12)
    empty = Factors(np.zeros_like(product.A), np.zeros_like(product.B))
    assert np.array_equal(align(product, empty).A, product.A)


def test_different_ranks_cannot_be_aligned():
    rng = np.random.default_rng(0)
    with pytest.raises(LayoutError, match="cannot align rank 2 to rank 3"):
        align(random(rng, 2), random(rng, 3))


# --- norm and aggregation error ----------------------------------------------------------------------


@given(SEEDS, st.integers(0, 6), SHAPES)
def test_the_norm_is_that_of_the_dense_matrix(seed, rank, shape):
    product = random(np.random.default_rng(seed), rank, *shape)
    assert norm(product) == pytest.approx(np.linalg.norm(dense(product)), rel=1e-10)


@given(SEEDS, st.integers(2, 5), st.integers(1, 4), SHAPES)
def test_the_error_is_that_of_the_dense_matrices(seed, clients, rank, shape):
    factors, weights = several(seed, [rank] * clients, shape)
    average, total = mean(factors, weights), dense_sum(factors, weights)
    expected = np.linalg.norm(total - dense(average)) / np.linalg.norm(total)
    assert aggregation_error([(factors, average)], weights) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_there_is_no_error_where_A_is_common_and_a_small_one_is_seen(dtype):
    factors, weights = several(0, [4] * 5)
    ffa = [Factors(factors[0].A.astype(dtype), f.B.astype(dtype)) for f in factors]
    average = mean(ffa, weights)
    assert aggregation_error([(ffa, average)], weights) < 1e-13
    nearly = Factors(average.A * (1 + 1e-11), average.B)
    assert aggregation_error([(ffa, nearly)], weights) == pytest.approx(1e-11, rel=1e-2)


def test_nothing_learned_is_no_error_and_something_made_of_nothing_is_an_infinite_one():
    zero = Factors(np.ones((2, 9)), np.zeros((12, 2)))
    assert aggregation_error([([zero, zero], zero)], [0.5, 0.5]) == 0.0
    something = random(np.random.default_rng(0), 2)
    assert aggregation_error([([zero, zero], something)], [0.5, 0.5]) == np.inf


# --- size --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "work",
    [
        lambda factors, weights: stack(factors, weights),
        lambda factors, weights: residual(factors, weights, factors[0]),
        lambda factors, weights: truncate(residual(factors, weights, factors[0])),
        lambda factors, weights: truncate(stack(factors, weights), 4),
        lambda factors, weights: align(factors[0], factors[1]),
        lambda factors, weights: aggregation_error([(factors, factors[0])], weights),
    ],
    ids=["stack", "residual", "recompress", "truncate", "align", "aggregation_error"],
)
def test_nothing_of_the_size_of_the_product_is_formed(work):
    """A product of 50 000 x 50 000 has 20 GB; its factors of rank 4 and three clients have 10 MB."""
    factors, weights = several(0, [4] * 3, (50_000, 50_000))
    tracemalloc.start()
    work(factors, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
