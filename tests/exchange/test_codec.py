"""Codecs: what is sent and what is kept make up the update; bytes that no codec makes are refused."""

import math
import random
import tracemalloc
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedsa_lora.errors import ConfigError, WireError
from fedsa_lora.exchange.codec import Codec, Dense, Sparse
from fedsa_lora.exchange.numbers import FORMATS, numbers
from fedsa_lora.exchange.selection import RandomK, Threshold, TopK
from fedsa_lora.exchange.stages import upload

VECTORS = arrays(
    np.float32, st.integers(0, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
SELECTIONS = [
    Dense(),
    TopK(0.1),
    TopK(0.7),
    TopK(1.0),
    RandomK(0.1),
    RandomK(0.7),
    RandomK(1.0),
    Threshold(1.5),
]
CODECS = [replace(codec, values=name, block=64) for codec, name in product(SELECTIONS, FORMATS)]
EXACT = ("fp32", "fp16", "bf16")

every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
every_selection = pytest.mark.parametrize("codec", SELECTIONS, ids=lambda codec: codec.name)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(size: int, seed: int = 0) -> np.ndarray:
    return rng(seed).normal(size=size).astype(np.float32)


def sent(codec: Codec, vector: np.ndarray, seed: int = 0) -> Sparse:
    """What arrives, after asserting the form of the payload and of what was decoded."""
    payload = codec.encode(vector, rng(seed))
    assert payload.dtype == codec.dtype
    assert payload.ndim == 1
    assert payload.nbytes <= codec.max_bytes(vector.size)
    decoded = codec.decode(payload, vector.size)
    check_valid(decoded, vector.size)
    return decoded


def check_valid(decoded: Sparse, size: int) -> None:
    assert decoded.size == size
    assert decoded.values.dtype == np.float32
    assert np.isfinite(decoded.values).all()
    if decoded.positions is None:
        assert decoded.values.shape == (size,)
    else:
        assert decoded.positions.dtype == np.int64
        assert decoded.positions.shape == decoded.values.shape
        assert (np.diff(decoded.positions, prepend=-1) > 0).all()
        assert (decoded.positions < size).all()


def selected(codec: Codec, vector: np.ndarray) -> set[int]:
    """The positions that a deterministic selection must choose, found the slow way."""
    by_size = sorted(range(vector.size), key=lambda i: (-abs(float(vector[i])), i))
    if isinstance(codec, TopK):
        return set(by_size[: codec.count(vector.size)])
    if isinstance(codec, Threshold):
        return {i for i in by_size if abs(float(vector[i])) >= codec.threshold}
    return set(by_size)


def positions_of(decoded: Sparse) -> list[int]:
    return list(range(decoded.size)) if decoded.positions is None else decoded.positions.tolist()


# What arrives


@pytest.mark.sampled(4)
@every_codec
@settings(max_examples=40, deadline=None)
@given(vector=VECTORS, seed=st.integers(0, 99))
def test_the_chosen_values_arrive_in_their_number_format(codec, vector, seed):
    decoded = sent(codec, vector, seed)
    found = positions_of(decoded)
    if isinstance(codec, RandomK):
        assert len(found) == codec.count(vector.size)
    else:
        assert set(found) == selected(codec, vector)
    if codec.values in EXACT:
        format_ = numbers(codec.values, codec.block)
        expected = format_.decode(format_.encode(vector[found], rng()), len(found))
        assert decoded.values.tobytes() == expected.tobytes()
    elif found:
        step = np.abs(vector[found]).max() / np.float64(127 if codec.values == "int8" else 7)
        errors = np.abs(decoded.values.astype(np.float64) - vector[found])
        assert errors.max() <= step * (1 + 1e-5) + 2.0**-149


@every_codec
def test_dense_puts_the_values_where_they_belong_and_zeros_elsewhere(codec):
    decoded = sent(codec, normal(300))
    found = positions_of(decoded)
    expected = np.zeros(300, np.float32)
    for position, value in zip(found, decoded.values, strict=True):
        expected[position] = value
    np.testing.assert_array_equal(decoded.dense(), expected, strict=True)


@every_codec
@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_very_short_vectors_arrive(codec, size):
    vector = np.full(size, 2, np.float32)
    decoded = sent(codec, vector)
    np.testing.assert_allclose(decoded.values, 2, rtol=1e-6)
    if isinstance(codec, RandomK):
        assert decoded.values.size == codec.count(size)
    else:
        assert set(positions_of(decoded)) == selected(codec, vector)
    assert (size == 0) == (codec.encode(vector, rng()).size == 0)


@pytest.mark.parametrize("codec", [Dense(), TopK(1.0), RandomK(1.0), RandomK(1.0, error_feedback=False)])
@settings(max_examples=100, deadline=None)
@given(vector=VECTORS)
def test_a_lossless_codec_keeps_every_bit_and_leaves_nothing(codec, vector):
    assert codec.lossless
    payload, residual = upload(codec).apply(vector, None, rng())
    assert residual is None
    assert codec.decode(payload, vector.size).dense().tobytes() == vector.tobytes()


@every_codec
def test_only_codecs_that_say_so_are_lossless_or_leave_no_value_out(codec):
    decoded = sent(codec, normal(300))
    assert codec.lossless == (decoded.dense().tobytes() == normal(300).tobytes())
    assert codec.sparse == (decoded.positions is not None)
    assert (codec.dtype == np.float32) == (codec == Dense(block=64))


@pytest.mark.parametrize("codec", [TopK(0.3), Threshold(1.0), Dense("fp16"), TopK(0.3, "bf16")])
def test_what_arrived_once_arrives_unchanged(codec):
    once = sent(codec, normal(400)).dense()
    assert sent(codec, once).dense().tobytes() == once.tobytes()


@every_codec
def test_encoding_depends_on_the_vector_and_the_draws_alone_and_leaves_the_vector_alone(codec):
    vector = normal(500)
    first, again = codec.encode(vector, rng(1)), codec.encode(vector.copy(), rng(1))
    assert first.tobytes() == again.tobytes()
    np.testing.assert_array_equal(vector, normal(500))
    assert not np.shares_memory(first, vector)
    drawn = isinstance(codec, RandomK) and codec.sparse
    other = codec.encode(vector, rng(2)).tobytes()
    assert (other != first.tobytes()) == (drawn or codec.values not in EXACT)


# Which values are chosen


@settings(max_examples=150, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 80), elements=st.sampled_from([-2, -1, -0.0, 0, 1, 2])),
    st.floats(0.01, 1),
)
def test_of_equal_magnitudes_the_first_are_sent(vector, ratio):
    assert set(positions_of(sent(TopK(ratio), vector))) == selected(TopK(ratio), vector)


@settings(max_examples=150, deadline=None)
@given(VECTORS.filter(len), st.floats(0.001, 1))
def test_top_k_is_a_contraction(vector, ratio):
    codec, exact = TopK(ratio), vector.astype(np.float64)
    left = exact - sent(codec, vector).dense()
    share = codec.count(vector.size) / vector.size
    assert left @ left <= (1 - share) * (exact @ exact) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("ratio", "size", "count"),
    [
        (0.1, 0, 0),
        (0.1, 1, 1),
        (0.1, 10, 1),
        (0.1, 11, 2),
        (0.07, 100, 7),
        (0.29, 100, 29),
        (1e-9, 5, 1),
        (1, 7, 7),
    ],
)
def test_the_number_of_values_is_the_ratio_rounded_up_and_at_least_one(ratio, size, count):
    for codec in (TopK(ratio), RandomK(ratio)):
        assert codec.count(size) == count
        assert sent(codec, normal(size)).values.size == count


def test_a_threshold_keeps_what_equals_it_and_what_is_zero_never():
    vector = np.array(
        [0.5, -0.5, np.nextafter(np.float32(0.5), np.float32(0)), 0, -0.0, 2.0**-149], np.float32
    )
    assert positions_of(sent(Threshold(0.5), vector)) == [0, 1]
    assert positions_of(sent(Threshold(1e-300), vector)) == [0, 1, 2, 5]
    assert positions_of(sent(Threshold(1e300), vector)) == []


def draws(codec: Codec, vector: np.ndarray, count: int) -> np.ndarray:
    generator = rng(7)
    return np.array(
        [codec.decode(codec.encode(vector, generator), vector.size).dense() for _ in range(count)], np.float64
    )


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["fp32", "int8", "int4"])
def test_random_k_without_error_feedback_is_unbiased_and_with_it_is_not(name):
    vector, count, ratio = np.linspace(0.5, 2, 50, dtype=np.float32), 4000, 0.2

    def squares(error_feedback: bool) -> float:
        found = draws(RandomK(ratio, name, error_feedback=error_feedback), vector, count)
        errors = (found.mean(0) - vector) / (found.std(0) / np.sqrt(count))
        return float(np.mean(errors**2))

    assert abs(squares(False) - 1) < 5 * np.sqrt(2 / vector.size)
    assert squares(True) > 100


def test_random_k_with_error_feedback_sends_values_as_they_are_and_contracts_in_the_mean():
    vector, ratio, count = normal(60), 0.25, 3000
    found = draws(RandomK(ratio), vector, count)
    np.testing.assert_array_equal(found[found != 0], np.broadcast_to(vector, found.shape)[found != 0])
    left = ((vector - found) ** 2).sum(1) / (vector.astype(np.float64) ** 2).sum()
    assert abs(left.mean() - (1 - ratio)) < 5 * left.std() / np.sqrt(count)


def test_random_k_sends_every_position_equally_often():
    size, ratio, count = 40, 0.3, 4000
    often = (draws(RandomK(ratio), np.ones(size, np.float32), count) != 0).sum(0)
    expected = count * ratio
    spread = ((often - expected) ** 2).sum() / (expected * (1 - ratio) * size / (size - 1))
    assert abs(spread - (size - 1)) < 5 * np.sqrt(2 * size)


def test_the_positions_of_a_seed_are_the_same_in_every_version_of_numpy():
    payload = np.concatenate([np.arange(8, dtype=np.uint8), np.ones(5, "<f4").view(np.uint8)])
    assert RandomK(0.25).decode(payload, 20).positions.tolist() == [2, 4, 6, 8, 16]


def test_random_k_multiplies_the_largest_values_no_further_than_they_go():
    vector = np.full(10, np.finfo(np.float32).max)
    assert sent(RandomK(0.2, error_feedback=False), vector).values.tolist() == [np.finfo(np.float32).max] * 2


# What it costs


def entropy_bytes(size: int, ratio: float) -> float:
    return -size * (ratio * np.log2(ratio) + (1 - ratio) * np.log2(1 - ratio)) / 8


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [3_000, 200_000])
def test_top_k_costs_its_values_and_the_entropy_of_its_positions(name, size):
    codec = TopK(0.1, name)
    bound = numbers(name, 256).bytes_of(codec.count(size)) + entropy_bytes(size, 0.1)
    payload = codec.encode(normal(size), rng())
    assert payload.nbytes <= 1.03 * bound
    assert codec.max_bytes(size) <= 1.1 * bound


@pytest.mark.parametrize("name", FORMATS)
def test_all_other_codecs_cost_what_they_say(name):
    vector, bytes_of = normal(10_000), numbers(name, 256).bytes_of
    assert Dense(name).encode(vector, rng()).nbytes == Dense(name).max_bytes(10_000) == bytes_of(10_000)
    assert (
        TopK(1.0, name).encode(vector, rng()).nbytes
        == RandomK(1.0, name).max_bytes(10_000)
        == bytes_of(10_000)
    )
    assert (
        RandomK(0.1, name).encode(vector, rng()).nbytes
        == RandomK(0.1, name).max_bytes(10_000)
        == 8 + bytes_of(1000)
    )
    assert Threshold(9.0, name).encode(vector, rng()).nbytes == 8
    assert Threshold(1e-30, name).encode(vector, rng()).nbytes == 8 + bytes_of(10_000)


def test_the_bytes_of_small_payloads():
    vector = np.array([0, 3, 0, 0, -1, 0, 0, 0], np.float32)
    three = np.array([3], "<f4").tobytes()
    assert TopK(0.1).encode(vector, rng()).tobytes() == three + bytes([0, 0b01000000])
    both = np.array([3, -1], "<f2").tobytes()
    count = bytes([2, *[0] * 7])
    assert Threshold(1.0, "fp16").encode(vector, rng()).tobytes() == count + both + bytes([0, 0b01001000])


# What is kept


@every_codec
@pytest.mark.parametrize("before", [None, normal(300, seed=1)])
def test_what_is_sent_and_what_is_kept_make_up_the_update(codec, before):
    update = normal(300)
    payload, residual = upload(codec).apply(update, before, rng())
    total = update if before is None else update + before
    assert (residual is None) == codec.lossless
    kept = np.zeros(300, np.float32) if residual is None else residual
    np.testing.assert_allclose(codec.decode(payload, 300).dense() + kept, total, rtol=1e-6, atol=1e-6)
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(update, normal(300))
    if before is not None:
        np.testing.assert_array_equal(before, normal(300, seed=1))


@every_codec
def test_over_a_hundred_rounds_nothing_is_lost_but_by_rounding(codec):
    generator, residual, sent_, updates = rng(3), None, np.zeros(200), np.zeros(200)
    for _ in range(100):
        update = (generator.normal(size=200) * np.geomspace(1e-3, 1, 200)).astype(np.float32)
        payload, residual = upload(codec).apply(update, residual, generator)
        sent_ += codec.decode(payload, 200).dense()
        updates += update
    kept = np.zeros(200) if residual is None else residual
    np.testing.assert_allclose(sent_ + kept, updates, atol=1e-4)
    assert np.abs(kept).max() < 20  # a sum of rounds that are never sent would grow on


@pytest.mark.parametrize("codec", [TopK(0.1), TopK(0.1, "int4"), RandomK(0.1), Threshold(1.0), Dense("int4")])
def test_without_error_feedback_nothing_is_kept_and_the_loss_stays(codec):
    plain = replace(codec, error_feedback=False)
    payload, residual = upload(plain).apply(normal(300), None, rng())
    assert residual is None
    assert np.abs(plain.decode(payload, 300).dense() - normal(300)).max() > 0.01


def test_a_residual_of_an_earlier_codec_is_sent_with_the_next_update():
    payload, residual = upload(Dense()).apply(normal(10), normal(10, seed=1), rng())
    assert residual is None
    np.testing.assert_array_equal(payload, normal(10) + normal(10, seed=1))


# What is refused


@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_not_sent(codec, bad):
    vector = normal(100)
    vector[[3, 50]] = bad
    with pytest.raises(WireError, match=r"^2 values are NaN or infinite$"):
        upload(codec).apply(vector, None, rng())


@every_selection
def test_an_update_that_overflows_with_its_residual_is_not_sent(codec):
    most = np.full(20, np.finfo(np.float32).max)
    with pytest.raises(WireError, match=r"^20 values are NaN or infinite$"):
        upload(codec).apply(most, most, rng())


@every_selection
@pytest.mark.parametrize("vector", [np.zeros(5), np.zeros((2, 2), np.float32), np.zeros((), np.float32)])
def test_only_a_flat_float32_vector_is_encoded(codec, vector):
    with pytest.raises(WireError, match=r"expected float32 \(n,\), got"):
        codec.encode(vector, rng())


@pytest.mark.case(9)
@pytest.mark.case(10)
@every_codec
def test_another_dtype_or_shape_is_refused_and_never_cast_or_reshaped(codec):
    payload = codec.encode(normal(64), rng())
    wrong = [payload[None], payload.astype(np.float64), payload.view(np.int8), payload.astype(object)]
    for array in [*wrong, payload.astype(">f4"), payload.astype("S3"), payload[0]]:
        with pytest.raises(WireError, match=r"expected .*float32|expected .*uint8") as caught:
            codec.decode(array, 64)
        assert str(array.shape) in str(caught.value)


@every_codec
def test_a_strided_or_read_only_payload_is_read_as_its_values(codec):
    payload = codec.encode(normal(64), rng())
    strided = np.repeat(payload, 2)[::2]
    strided.flags.writeable = False
    expected = codec.decode(payload, 64).dense()
    np.testing.assert_array_equal(codec.decode(strided, 64).dense(), expected)


@pytest.mark.case(9)
@every_codec
def test_a_payload_that_is_cut_off_padded_or_of_another_size_is_refused(codec):
    payload = codec.encode(normal(90), rng())
    for length in range(payload.size):
        with pytest.raises(WireError):
            codec.decode(payload[:length], 90)
    for extra in (1, 2, 5, 1000):
        with pytest.raises(WireError):
            codec.decode(np.append(payload, np.zeros(extra, payload.dtype)), 90)
    if not isinstance(codec, Threshold):
        for size in (0, 1, 45, 180, 10**12):
            with pytest.raises(WireError):
                codec.decode(payload, size)


def test_another_number_of_values_than_the_ratio_says_is_refused():
    vector = normal(1000)
    for sender, receiver in product((TopK, RandomK), repeat=2):
        with pytest.raises(WireError, match="expected"):
            receiver(0.1).decode(sender(0.2).encode(vector, rng()), 1000)
    with pytest.raises(WireError, match="expected"):
        TopK(0.1).decode(TopK(0.101).encode(vector, rng()), 1000)


@pytest.mark.case(15)
@pytest.mark.parametrize("count", [4, 2**31, 2**63, 2**64 - 1])
def test_a_threshold_payload_that_announces_too_much_is_refused_without_memory(count):
    for size in (3, 10**12):
        payload = np.frombuffer(count.to_bytes(8, "little") + bytes(30), np.uint8)
        for name in FORMATS:
            tracemalloc.start()
            try:
                with pytest.raises(WireError, match="expected"):
                    Threshold(0.1, name).decode(payload, size)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < 100_000


@pytest.mark.parametrize("name", FORMATS)
def test_a_threshold_payload_of_more_values_than_there_are_is_refused_at_every_length(name):
    for size in (1, 2, 3, 8):
        head = (size + 1).to_bytes(8, "little")
        for length in range(Threshold(0.1, name).max_bytes(size) - 7):
            payload = np.frombuffer(head + bytes(length), np.uint8)
            with pytest.raises(
                WireError, match=f"expected a count of at most {size} in 8 bytes, got {size + 1}"
            ):
                Threshold(0.1, name).decode(payload, size)


@every_codec
def test_a_payload_longer_than_any_is_refused_before_it_is_read(codec):
    payload = np.zeros((1, 10**6), codec.dtype)[:, ::2][0]
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=r"got (uint8|float32) \(500000,\)"):
            codec.decode(payload, 90)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000


@pytest.mark.case(15)
@pytest.mark.parametrize("codec", [TopK(0.1), TopK(1.0), RandomK(0.1), RandomK(1.0), Dense("int8"), Dense()])
def test_a_short_payload_of_a_huge_vector_is_refused_without_memory(codec):
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="expected"):
            codec.decode(np.zeros(100, codec.dtype), 10**12)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def mutated(content: bytes, random_: random.Random) -> bytes:
    """A few bytes set, cut, inserted or doubled; one in four is noise altogether."""
    if random_.random() < 0.25:
        return random_.randbytes(random_.choice([len(content), random_.randrange(0, 200)]))
    changed = bytearray(content)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(changed) + 1)
        match random_.randrange(5):
            case 0:
                changed[at : at + 1] = random_.randbytes(1)
            case 1:
                del changed[at : at + random_.randint(1, 9)]
            case 2:
                changed[at:at] = random_.randbytes(random_.randint(1, 9))
            case 3:
                changed[at:at] = changed[at : at + random_.randint(1, 20)]
            case 4:
                changed[at : at + 1] = (
                    bytes([changed[at] ^ 1 << random_.randrange(8)]) if at < len(changed) else b""
                )
    return bytes(changed)


@pytest.mark.sampled(4)
@pytest.mark.case(14)
@every_codec
def test_of_altered_payloads_each_is_refused_or_decodes_to_a_valid_vector(codec):
    random_, refused = random.Random(codec.name), 0
    for attempt in range(300):
        size = random_.choice([1, 7, 90, 400])
        content = mutated(codec.encode(normal(size, attempt), rng(attempt)).tobytes(), random_)
        content = content[: len(content) // 4 * 4] if codec.dtype == np.float32 else content
        try:
            decoded = codec.decode(np.frombuffer(content, codec.dtype), size)
        except WireError:
            refused += 1
            continue
        check_valid(decoded, size)
        assert isinstance(codec, Threshold) or decoded.values.size == len(
            positions_of(sent(codec, normal(size)))
        )
    assert refused > 60


# Settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TopK(1.5),
            "ratio=1.5: expected more than 0 and at most 1, the share of values that is sent",
        ),
        (
            lambda: RandomK(0.0),
            "ratio=0.0: expected more than 0 and at most 1, the share of values that is sent",
        ),
        (
            lambda: Threshold(math.inf),
            "threshold=inf: expected a finite number above 0, the least magnitude that is sent",
        ),
        (lambda: Dense("fp8"), "values='fp8': expected one of fp32, fp16, bf16, int8, int4"),
        (
            lambda: Dense(block=0),
            "block=0: expected a whole number of 1 to 65536, the values of int8 and int4 that share a scale",
        ),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize("bad", [0, -0.1, 1.0001, math.nan, math.inf, -math.inf, "0.1", None, True])
def test_no_other_ratio_is_a_share(bad):
    for kind in (TopK, RandomK):
        with pytest.raises(ConfigError, match="ratio="):
            kind(bad)


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, "1", None, True])
def test_no_other_threshold_is_a_magnitude(bad):
    with pytest.raises(ConfigError, match="threshold="):
        Threshold(bad)


@pytest.mark.parametrize("bad", [-1, 65_537, 2.0, "256", None, True])
def test_no_other_block_is_a_number_of_values(bad):
    for make in (Dense, lambda block: TopK(0.1, block=block), lambda block: Threshold(1.0, block=block)):
        with pytest.raises(ConfigError, match="block="):
            make(block=bad)


def test_codecs_that_decode_differently_have_different_names_and_the_rest_the_same():
    names = [codec.name for codec in CODECS]
    assert len(set(names)) == len(names)
    assert TopK(0.1, "int8").name == "top_k 0.1 int8/256"
    assert TopK(1).name == TopK(1.0, error_feedback=False, block=7).name == "top_k 1.0 fp32"
    assert Dense("int4", block=32).name == "dense int4/32"
    assert RandomK(0.25, "bf16").name == "random_k 0.25 bf16"
    assert Threshold(0.001, "fp16").name == "threshold 0.001 fp16"
