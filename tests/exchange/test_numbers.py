"""Number formats: the nearest number or an unbiased one, always finite, in exactly so many bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedsa_lora.errors import WireError
from fedsa_lora.exchange.numbers import FORMATS, numbers

MOST = np.finfo(np.float32).max
ANY = arrays(
    np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
BLOCKS = st.sampled_from([1, 2, 3, 7, 256, 65_536])
LEVELS = {"int8": 127, "int4": 7}
BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(size: int, seed: int = 0) -> np.ndarray:
    return rng(seed).normal(size=size).astype(np.float32)


def sent(values: np.ndarray, name: str, block: int = 256, seed: int = 0) -> np.ndarray:
    """The values that arrive, after asserting the number of bytes."""
    format_ = numbers(name, block)
    payload = format_.encode(values, rng(seed))
    assert payload.dtype == np.uint8
    assert payload.shape == (format_.bytes_of(values.size),)
    received = format_.decode(payload, values.size)
    assert received.dtype == np.float32
    assert received.shape == values.shape
    return received


def block_maxima(values: np.ndarray, block: int) -> np.ndarray:
    """max|x| of the block that each value is in, as float64."""
    blocks = [np.abs(values[i : i + block]) for i in range(0, values.size, block)]
    return np.concatenate([np.full(b.size, b.max(), np.float64) for b in blocks] or [np.zeros(0)])


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150, deadline=None)
@given(values=ANY, block=BLOCKS, seed=st.integers(0, 99))
def test_finite_values_arrive_finite_with_the_sign_they_had(name, values, block, seed):
    received = sent(values, name, block, seed)
    assert np.isfinite(received).all()
    assert (received * np.sign(values) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(ANY)
def test_fp32_keeps_every_bit(values):
    assert sent(values, "fp32").tobytes() == values.tobytes()


@settings(max_examples=200, deadline=None)
@given(ANY)
def test_bf16_is_that_of_torch_and_saturates(values):
    most = torch.finfo(torch.bfloat16).max
    expected = torch.from_numpy(values).to(torch.bfloat16).float().clamp(-most, most).numpy()
    np.testing.assert_array_equal(sent(values, "bf16"), expected)


@settings(max_examples=200, deadline=None)
@given(ANY)
def test_fp16_is_that_of_torch_and_saturates(values):
    expected = torch.from_numpy(values).half().float().clamp(-65504, 65504).numpy()
    np.testing.assert_array_equal(sent(values, "fp16"), expected)


def test_ties_go_to_the_even_neighbour():
    for name, ulp in (("bf16", 2.0**-7), ("fp16", 2.0**-10)):
        ties = 1 + ulp * np.array([0.5, 1.5, 2.5, -0.25], np.float32)
        np.testing.assert_array_equal(sent(ties, name), 1 + ulp * np.array([0, 2, 2, 0]))


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
@settings(max_examples=60, deadline=None)
@given(values=ANY)
def test_what_arrived_once_arrives_unchanged(name, values):
    once = sent(values, name)
    assert sent(once, name).tobytes() == once.tobytes()


@pytest.mark.parametrize("name", LEVELS)
@settings(max_examples=200, deadline=None)
@given(values=ANY, block=BLOCKS, seed=st.integers(0, 99))
def test_the_error_is_below_one_step_of_the_block(name, values, block, seed):
    step = block_maxima(values, block) / LEVELS[name]
    error = np.abs(sent(values, name, block, seed).astype(np.float64) - values)
    assert (error <= step * (1 + 1e-5) + 2.0**-149).all()


@pytest.mark.parametrize("name", LEVELS)
def test_levels_of_a_scale_arrive_exactly_whatever_is_drawn(name):
    most = LEVELS[name]
    levels = np.arange(-most, most + 1).astype(np.float32)
    for seed, scale in enumerate([1.0, 2.0**-140, 2.0**-149, 2.0**100, 2.0**-9]):
        values = levels * np.float32(scale)
        for attempt in range(200):
            np.testing.assert_array_equal(sent(values, name, 256, 1000 * seed + attempt), values)


def standardised_errors(draws: np.ndarray, values: np.ndarray, step: float) -> np.ndarray:
    """(mean - x) / its standard error, for rounding that is unbiased: mean square 1."""
    part = np.mod(values.astype(np.float64) / step, 1)
    return (draws.mean(0) - values) / (step * np.sqrt(part * (1 - part) / len(draws)))


@pytest.mark.parametrize("name", LEVELS)
def test_the_mean_over_draws_is_the_value(name):
    step, count = 2.0**-6, 400
    parts = rng(3).uniform(0.05, 0.95, 2000)
    values = ((rng(4).integers(-LEVELS[name], LEVELS[name], 2000) + parts) * step).astype(np.float32)
    values[::256] = LEVELS[name] * step  # so that the scale of every block is the step
    inner = np.arange(2000) % 256 != 0
    generator, format_ = rng(5), numbers(name, 256)
    draws = np.array(
        [format_.decode(format_.encode(values, generator), 2000) for _ in range(count)], np.float64
    )
    errors = standardised_errors(draws[:, inner], values[inner], step)
    assert abs(errors.mean()) < 4 / np.sqrt(errors.size)
    assert abs(np.mean(errors**2) - 1) < 5 * np.sqrt(2 / errors.size)
    nearest = np.round(values[inner].astype(np.float64) / step)[None].repeat(count, 0) * step
    assert np.mean(standardised_errors(nearest, values[inner], step) ** 2) > 20


def test_tiny_values_are_not_biased_by_a_scale_that_cannot_be_written_exactly():
    tiny = np.float32(2.0**-149)
    values = np.array([190, 100, 45], np.float32) * tiny  # 190 / 127 steps: a rounded scale of 1 clips to 127
    draws = np.array([sent(values, "int8", seed=seed) for seed in range(2000)], np.float64) / tiny
    np.testing.assert_allclose(draws.mean(0), [190, 100, 45], atol=0.1)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("most", [MOST, -MOST])
def test_the_largest_float_is_never_rounded_beyond_the_last_level(name, most):
    received = sent(np.full(2_000_000, most), name)  # 1 in 65,536 would go over: the scale has no room above
    np.testing.assert_allclose(received, most, rtol=1e-6)


@pytest.mark.parametrize("name", LEVELS)
def test_each_block_has_its_own_scale(name):
    values = np.concatenate(
        [normal(10) * np.float32(1e-6), normal(10) * np.float32(1e6), np.zeros(10, np.float32)]
    )
    received = sent(values, name, 10)
    assert np.abs(received - values)[:10].max() < 1e-6
    assert not received[20:].any()


@pytest.mark.parametrize("name", LEVELS)
def test_values_beyond_one_chunk_keep_the_scale_of_their_block(name):
    block = 1000
    values = normal(150_000) * np.repeat(np.geomspace(1e-9, 1e9, 150), block).astype(np.float32)
    error = np.abs(sent(values, name, block).astype(np.float64) - values)
    assert (error <= block_maxima(values, block) / LEVELS[name] * (1 + 1e-5)).all()


def test_the_bytes_of_int4_and_int8_are_scales_and_then_codes():
    values = np.array([7, -7, 3, 0, 14], np.float32)
    scales = np.array([1, 2], "<f4").tobytes()
    assert numbers("int4", 4).encode(values, rng()).tobytes() == scales + bytes([0x1F, 0x8B, 0x0F])
    values = np.array([127, -127, 3, 0, -254], np.float32)
    assert numbers("int8", 4).encode(values, rng()).tobytes() == scales + bytes([127, 129, 3, 0, 129])


@pytest.mark.parametrize("name", FORMATS)
def test_the_bytes_depend_on_the_number_of_values_alone(name):
    for count in (0, 1, 2, 255, 256, 257, 1000):
        scales = -(-count // 256) if name in LEVELS else 0
        assert numbers(name, 256).bytes_of(count) == 4 * scales + np.ceil(BYTES[name] * count)
        sent(normal(count), name)


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_draws_give_the_same_bytes_and_others_do_not(name):
    format_, values = numbers(name, 64), normal(500)
    first, again, other = (format_.encode(values, rng(seed)).tobytes() for seed in (1, 1, 2))
    assert first == again
    assert (first == other) == (name not in LEVELS)


@pytest.mark.parametrize("name", FORMATS)
def test_encoding_leaves_the_values_alone(name):
    values = normal(500)
    numbers(name, 64).encode(values, rng())
    np.testing.assert_array_equal(values, normal(500))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_bytes_is_refused(name, change):
    format_ = numbers(name, 4)
    length = format_.bytes_of(11)
    with pytest.raises(
        WireError, match=f"expected {length} bytes of 11 {name} values, got {length + change}"
    ):
        format_.decode(np.zeros(length + change, np.uint8), 11)


@pytest.mark.parametrize(("name", "dtype"), [("fp32", "<f4"), ("fp16", "<f2"), ("bf16", "<u2")])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_counted_and_refused(name, dtype, bad):
    values = np.array([1, bad, 2, bad], np.float32)
    words = values.view(np.uint32) >> 16 if name == "bf16" else values
    with pytest.raises(WireError, match="2 values are NaN or infinite"):
        numbers(name, 256).decode(words.astype(dtype).view(np.uint8), 4)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, MOST, -(2.0**-149)])
def test_a_scale_that_no_block_has_is_refused(name, scale):
    payload = np.concatenate([np.array([1, scale], "<f4").view(np.uint8), np.full(8, 0x11, np.uint8)])
    with pytest.raises(WireError, match=f"expected {name} scales of 0 to"):
        numbers(name, 8 if name == "int4" else 4).decode(payload, 16 if name == "int4" else 8)


def test_the_code_below_all_levels_is_refused():
    scale = np.array([1], "<f4").view(np.uint8)
    with pytest.raises(WireError, match="expected int8 values of -127 to 127"):
        numbers("int8", 4).decode(np.append(scale, np.uint8(128)), 1)
    for byte in (0x10, 0x01):
        with pytest.raises(WireError, match="expected int4 values of -7 to 7"):
            numbers("int4", 4).decode(np.append(scale, np.uint8(byte)), 2)


def test_padding_of_int4_that_is_not_zero_is_refused():
    scale = np.array([1], "<f4").view(np.uint8)
    assert numbers("int4", 4).decode(np.append(scale, np.uint8(0x09)), 1) == [1]
    with pytest.raises(WireError, match="padding"):
        numbers("int4", 4).decode(np.append(scale, np.uint8(0x19)), 1)
