"""The mean of updates, dense or sparse, of clients that share all or some of the tensors."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.exchange.arrays import Layout, TensorSpec
from strategies.rules.updates import COUNT_FLOOR, Update, mean_update

CLASSES = 3
LAYOUT = Layout(
    (
        *(TensorSpec(f"{i}.lora_A.weight", (2, 5 + i), "A", str(i)) for i in range(3)),
        TensorSpec("classifier.weight", (CLASSES, 4), "head", "classifier"),
        TensorSpec("classifier.bias", (CLASSES,), "head", "classifier"),
    )
)
HEADS = [spec.name for spec in LAYOUT if spec.role == "head"]
SEEDS = st.integers(0, 2**32 - 1)


def cohort(seed: int, clients: int = 4, counted: bool = False) -> list[Update]:
    """Clients that share some tensors each, with values only there, in dense form."""
    rng = np.random.default_rng(seed)
    updates = []
    for client in range(clients):
        shared = frozenset(name for name in LAYOUT.names if rng.random() < 0.6)
        values = np.zeros(LAYOUT.size, np.float32)
        for name in shared:
            values[LAYOUT.span(name)] = rng.normal(size=LAYOUT.select([name]).size)
        values[rng.random(LAYOUT.size) < 0.5] = 0
        counts = tuple(rng.integers(0, 9, CLASSES).tolist()) if counted else ()
        update = Update(str(client), int(rng.integers(1, 99)), shared, None, values, counts=counts)
        updates.append(update)
    return updates


def sparse(update: Update) -> Update:
    positions = np.flatnonzero(update.values)
    return replace(update, positions=positions, values=update.values[positions])


def by_hand(updates: list[Update]) -> np.ndarray:
    """Value by value, in plain Python."""
    mean = np.zeros(LAYOUT.size)
    for spec in LAYOUT:
        sharing, span = [u for u in updates if spec.name in u.shared], LAYOUT.span(spec.name)
        for i in range(span.start, span.stop if sharing else span.start):
            weights = [float(u.examples) for u in sharing]
            if spec.role == "head" and updates[0].counts:
                row = (i - span.start) // (spec.size // CLASSES)
                weights = [u.counts[row] + COUNT_FLOOR for u in sharing]
            values = [float(u.values[i]) for u in sharing]
            mean[i] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    return mean


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.booleans(), st.booleans())
def test_each_tensor_is_the_mean_of_those_who_share_it_with_their_own_weights(seed, counted, thin):
    updates = cohort(seed, counted=counted)
    found = mean_update(LAYOUT, [sparse(u) for u in updates] if thin else updates)
    np.testing.assert_allclose(found, by_hand(updates), rtol=1e-6, atol=1e-7)
    assert found.dtype == np.float32
    for name in set(LAYOUT.names).difference(*(u.shared for u in updates)):
        assert not found[LAYOUT.span(name)].any(), "what nobody shares does not move"


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.booleans())
def test_sparse_and_dense_forms_of_the_same_updates_give_the_same_bits(seed, counted):
    updates = cohort(seed, counted=counted)
    mixed = [sparse(u) if i % 2 else u for i, u in enumerate(updates)]
    expected = mean_update(LAYOUT, updates)
    assert np.array_equal(mean_update(LAYOUT, mixed), expected)
    assert np.array_equal(mean_update(LAYOUT, [sparse(u) for u in updates]), expected)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.permutations(range(5)), st.booleans())
def test_the_order_of_clients_changes_no_more_than_the_rounding_of_float64(seed, order, counted):
    updates = cohort(seed, 5, counted)
    found = mean_update(LAYOUT, [updates[i] for i in order])
    np.testing.assert_allclose(found, mean_update(LAYOUT, updates), rtol=2e-7, atol=1e-14)


def test_a_shared_head_is_averaged_row_by_row_with_class_counts_and_a_plain_mean_is_another():
    updates = [replace(u, shared=frozenset(LAYOUT.names)) for u in cohort(1, 2, counted=True)]
    updates = [replace(u, counts=c) for u, c in zip(updates, [(8, 0, 0), (0, 0, 2)], strict=True)]
    span = LAYOUT.span("classifier.bias")
    one, two = (u.values[span] for u in updates)
    seen, unseen = 8.001 / 8.002, 0.001 / 8.002
    third = (0.001 * one[2] + 2.001 * two[2]) / 2.002
    expected = [seen * one[0] + unseen * two[0], (one[1] + two[1]) / 2, third]
    np.testing.assert_allclose(mean_update(LAYOUT, updates)[span], expected, rtol=1e-6, atol=1e-9)
    plain = mean_update(LAYOUT, [replace(u, counts=()) for u in updates])
    assert not np.allclose(plain[span], expected)


class Counted(np.ndarray):
    """Values that count how many of them take part in arithmetic."""

    seen = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        Counted.seen += max(np.size(x) for x in inputs if isinstance(x, Counted))
        plain = [x.view(np.ndarray) if isinstance(x, Counted) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)


@pytest.mark.parametrize("whole", [True, False], ids=["all tensors", "some tensors"])
def test_every_value_received_is_computed_with_once_however_long_the_vector_is(whole):
    names = frozenset(LAYOUT.names if whole else LAYOUT.names[:-1])
    for many in (1, 5):
        Counted.seen = 0
        positions = np.arange(many)
        values = np.ones(many, np.float32).view(Counted)
        mean_update(LAYOUT, [Update(str(i), 5, names, positions, values) for i in range(4)])
        assert Counted.seen == 4 * many


@given(SEEDS, st.lists(st.sampled_from(LAYOUT.names), unique=True))
def test_an_update_among_some_values_is_that_part_of_the_vector_dense_or_sparse(seed, names):
    part = LAYOUT.select(names)
    index = LAYOUT.index(part)
    at = slice(None) if index is None else index
    for update in cohort(seed):
        expected = update.values[at]
        assert np.array_equal(update.among(index).dense(part.size), expected)
        assert np.array_equal(sparse(update).among(index).dense(part.size), expected)
