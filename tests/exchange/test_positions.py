"""Positions: every set comes back, near the entropy bound, and bytes that say anything else are refused."""

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.errors import WireError
from fedsa_lora.exchange.positions import decode_positions, encode_positions, max_bytes

SUPPORTS = st.integers(0, 600).flatmap(
    lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1)) if size else st.just(set()))
)


def array(*positions: int) -> np.ndarray:
    return np.array(sorted(positions), np.int64)


def drawn(size: int, ratio: float | np.ndarray, seed: int = 0) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(seed).random(size) < ratio)


def entropy_bytes(size: int, ratio: float) -> float:
    return -size * (ratio * np.log2(ratio) + (1 - ratio) * np.log2(1 - ratio)) / 8


def comes_back(positions: np.ndarray, size: int) -> int:
    """The bytes of positions, after asserting that they come back."""
    payload = encode_positions(positions, size)
    assert payload.dtype == np.uint8
    assert payload.size <= max_bytes(positions.size, size)
    np.testing.assert_array_equal(decode_positions(payload, positions.size, size), positions, strict=True)
    return payload.size


@settings(max_examples=300, deadline=None)
@given(SUPPORTS)
def test_any_set_of_positions_comes_back(support):
    size, positions = support
    comes_back(array(*positions), size)


@pytest.mark.parametrize("size", [1, 2, 3, 127, 128, 129, 256, 257, 1025])
def test_ends_runs_and_combs_come_back(size):
    every = range(size)
    for positions in (
        [], every, [0], [size - 1], every[1:], every[:-1], [0, size - 1], every[1:-1],
        every[::2], every[1::2], every[: size // 2], every[size // 2 :],
    ):  # fmt: skip
        comes_back(array(*set(positions)), size)


@pytest.mark.parametrize("size", [0, 1, 5, 10**9])
def test_none_and_all_take_no_bytes(size):
    assert max_bytes(0, size) == max_bytes(size, size) == 0
    assert encode_positions(array(), size).size == 0
    assert decode_positions(np.zeros(0, np.uint8), 0, size).size == 0
    for count in {0, min(size, 5)} & {0, size}:
        with pytest.raises(WireError, match=f"no bytes of positions for {count} of {size}, got 1"):
            decode_positions(np.zeros(1, np.uint8), count, size)


@pytest.mark.parametrize("ratio", [0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.6, 0.8, 0.9, 0.99, 0.999])
def test_random_positions_cost_what_their_entropy_says(ratio):
    size = 400_000
    assert comes_back(drawn(size, ratio), size) <= 1.05 * entropy_bytes(size, ratio)


def test_each_layer_costs_what_its_own_density_needs():
    densities = [0.5, 0.01, 0.2, 0.001, 0.9 * 0.1, 0.3]
    size = 50_000
    positions = drawn(size * len(densities), np.repeat(densities, size))
    assert comes_back(positions, size * len(densities)) <= 1.06 * sum(
        entropy_bytes(size, d) for d in densities
    )


def test_clusters_cost_a_third_of_scattered_positions():
    regions = np.zeros(200)
    regions[drawn(200, 0.1)] = 0.97
    clustered = drawn(400_000, np.repeat(regions, 2000))
    scattered = drawn(400_000, clustered.size / 400_000)
    assert comes_back(clustered, 400_000) < comes_back(scattered, 400_000) / 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=128))
def test_no_other_parameter_takes_fewer_bytes(gaps):
    positions = np.cumsum(np.array(gaps) + 1) - 1
    size = 2 * int(positions[-1]) + 2
    bits = min(sum(1 + b + (gap >> b) for gap in gaps) for b in range(14))
    assert comes_back(positions, size) == 1 + -(-bits // 8)


def test_few_positions_of_very_many_need_no_memory_for_all():
    size = 1 << 50
    tracemalloc.start()
    try:
        comes_back(array(0, 1, 5, 1 << 30, 1 << 49, size - 1), size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("ratio", [0.1, 0.8])
def test_cut_off_or_padded_bytes_are_refused(ratio):
    size, positions = 500, drawn(500, ratio)
    payload = encode_positions(positions, size)
    for length in range(payload.size):
        with pytest.raises(WireError, match="expected"):
            decode_positions(payload[:length], positions.size, size)
    for more in ([0], [128], [1], [0] * 9, [255] * 200):
        with pytest.raises(WireError, match="expected"):
            decode_positions(np.append(payload, np.array(more, np.uint8)), positions.size, size)


def test_another_count_is_refused():
    size, positions = 500, drawn(500, 0.1)
    payload = encode_positions(positions, size)
    for count in {*range(size)} - {positions.size, size - positions.size}:
        with pytest.raises(WireError, match="expected"):
            decode_positions(payload, count, size)
    with pytest.raises(WireError, match=f"expected {positions.size + 1} positions that end in the last byte"):
        decode_positions(payload, positions.size + 1, size)


def test_padding_that_is_not_zero_is_refused():
    payload = encode_positions(array(3), 10)  # one parameter 1; the bits 1, 01 and five of padding
    assert payload.tolist() == [1, 0b10100000]
    for bit in range(5):
        with pytest.raises(WireError, match="1 positions that end in the last byte, got 2"):
            decode_positions(payload | np.array([0, 1 << bit], np.uint8), 1, 10)


@pytest.mark.case(16)
def test_a_position_outside_is_refused_with_its_value():
    payload = encode_positions(array(3, 9), 10)
    assert decode_positions(payload, 2, 10).tolist() == [3, 9]
    with pytest.raises(WireError, match="expected positions below 9, got 9"):
        decode_positions(payload, 2, 9)


@pytest.mark.parametrize("parameter", [5, 64, 255])
def test_a_parameter_larger_than_any_gap_needs_is_refused(parameter):
    with pytest.raises(WireError, match="1 Rice parameters of at most 4 for 1 positions"):
        decode_positions(np.array([parameter, 1], np.uint8), 1, 10)


@pytest.mark.case(15)
@pytest.mark.parametrize("count", [1, 1 << 39, (1 << 40) - 1])
def test_a_huge_count_in_a_few_bytes_is_refused_without_memory(count):
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="expected"):
            decode_positions(np.full(40, 7, np.uint8), count, 1 << 40)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_more_bytes_than_any_positions_take_are_refused_before_they_are_unpacked():
    payload = np.zeros(10**6, np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="expected at most 2 bytes of positions, got 1000000"):
            decode_positions(payload, 1, 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000


@pytest.mark.case(16)
def test_any_bytes_are_refused_or_say_positions_of_that_count_and_size():
    rng, accepted = random.Random(0), 0
    for _ in range(5000):
        size = rng.randrange(1, 40)
        count = rng.randrange(0, size + 1)
        payload = np.frombuffer(bytes([rng.randrange(4)]) + rng.randbytes(rng.randrange(0, 5)), np.uint8)
        try:
            positions = decode_positions(payload, count, size)
        except WireError:
            continue
        accepted += 1
        assert positions.shape == (count,)
        assert positions.dtype == np.int64
        assert (np.diff(positions, prepend=-1) > 0).all()
        assert (positions < size).all()
    assert accepted > 50
