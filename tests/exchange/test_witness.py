"""The witness finds private values wherever they stand, and accuses no message without them."""

import io
import struct

import numpy as np
import pytest
import torch
from flwr.common import ConfigRecord, RecordDict, ndarrays_to_parameters
from flwr.common.serde import recorddict_to_proto
from flwr.compat.common.recorddict_compat import parameters_to_arrayrecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.exchange.codec import Dense
from fedsa_lora.exchange.witness import FALSE_ALARM, SEED, Sketch, matches, may_hold, private_values, search

RNG = np.random.default_rng(0)
A = {"x.lora_A.weight": RNG.normal(size=(4, 8)).astype(np.float32)}
B = {"x.lora_B.weight": RNG.normal(size=(8, 4)).astype(np.float32)}
PRIVATE = private_values([B])
VALUES = sum(array.size for array in B.values())


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def in_protobuf(array: np.ndarray) -> bytes:
    """A Flower message with another array and some text around."""
    arrays = parameters_to_arrayrecord(ndarrays_to_parameters([*A.values(), array]), keep_input=True)
    record = RecordDict({"p": arrays, "c": ConfigRecord({"text": "round three"})})
    return recorddict_to_proto(record).SerializeToString()


def trained(seed: int, optimizer: str, steps: int, lr: float, clip: bool, modules: int = 4) -> np.ndarray:
    """The B of a client after some steps from zero, (modules * 192 * 8,): gradients of low rank, with rows of
    very different size, as those of a few sentences are."""
    draw = torch.Generator().manual_seed(seed)
    a = [torch.rand(8, 192, generator=draw) / 7 - 1 / 14 for _ in range(modules)]
    b = [torch.zeros(192, 8, requires_grad=True) for _ in range(modules)]
    kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    made = kind(b, lr=lr, weight_decay=0.0)
    channels = torch.exp(torch.randn(192, generator=draw))
    for _ in range(steps):
        loss = torch.zeros(())
        for left, right in zip(a, b, strict=True):
            x = torch.randn(16, 192, generator=draw) * channels
            wanted = torch.randn(16, 2, generator=draw) @ torch.randn(2, 192, generator=draw) * channels
            loss = loss + ((x @ left.T @ right.T) * wanted).mean()
        made.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(b, 1.0)
        made.step()
    return np.concatenate([value.detach().numpy().ravel() for value in b])


def rounded_to_bf16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).bfloat16().float().numpy()


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, VALUES - SEED), st.integers(SEED, VALUES), st.binary(max_size=40), st.binary(max_size=40)
)
def test_four_values_in_a_row_are_found_at_any_offset(start, length, before, after):
    taken = B["x.lora_B.weight"].ravel()[start : start + length]
    assert matches(before + taken.tobytes() + after, PRIVATE) >= taken.size


def test_runs_that_differ_in_one_last_bit_alone_are_both_found():
    values = RNG.normal(size=6).astype(np.float32)
    beside = values.copy()
    beside[2] = np.nextafter(values[2], np.float32(9))
    private = private_values([{"b": values}, {"b": beside}])
    assert matches(values.tobytes(), private) == matches(beside.tobytes(), private) == 6
    other = np.nextafter(beside[2], np.float32(9))
    assert matches(np.array([*values[:2], other, *values[3:]]).tobytes(), private) == 0


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 30), st.integers(0, 30))
def test_the_number_of_matches_is_that_of_a_search_byte_by_byte(noise, start, length):
    taken = B["x.lora_B.weight"].ravel()[start : start + length].tobytes()
    message = noise[: len(noise) // 2] + taken + noise[len(noise) // 2 :]
    assert matches(message, PRIVATE) == by_hand(message, B["x.lora_B.weight"].ravel())


def by_hand(message: bytes, values: np.ndarray) -> int:
    """The longest runs of values from each byte on, where they are rare enough for the message's length."""
    needed = np.log2(len(message) * values.size / FALSE_ALARM) if message else 0
    found = 0
    for at in range(len(message)):
        for begin in range(values.size):
            before = values[begin - 1].tobytes() if begin else b""
            if before and message[max(0, at - 4) : at] == before:
                continue  # in the middle of a run
            length = 0
            while (
                begin + length < values.size
                and message[at + 4 * length :][:4] == values[begin + length].tobytes()
            ):
                length += 1
            bits = PRIVATE.information[begin + length] - PRIVATE.information[begin]
            found += length if length >= SEED and bits >= needed else 0
    return found


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2), st.integers(0, 30), st.integers(0, 30), st.integers(0, 3))
def test_the_short_search_finds_what_the_whole_one_does(noise, which, start, length, cut):
    states = [B, {"head": np.float32([1, 2, 3])}, {"b": np.full(40, 0.25, np.float32)}]
    taken = next(iter(states[which].values())).ravel()[start : start + length].tobytes()
    message = noise[: len(noise) // 2] + taken[cut:] + noise[len(noise) // 2 :]
    whole = matches(message, private_values(states))
    assert search(message, [*map(Sketch.of, states)], lambda: states) == whole
    assert search(message, [], list) == 0


def test_a_message_of_other_values_needs_no_whole_search():
    other = np.random.default_rng(5).normal(size=20_000).astype(np.float32)
    private = [Sketch.of(B)]
    assert not may_hold(b"?" + other.tobytes(), private)
    assert may_hold(b"?" + other.tobytes() + B["x.lora_B.weight"].ravel()[7 : 7 + SEED].tobytes(), private)


SMALL_RATES = [
    ("adamw", 1, 1e-3, True), ("adamw", 1, 1e-5, True), ("adamw", 1, 1e-3, False), ("adamw", 2, 1e-3, True),
    ("adamw", 3, 1e-3, False), ("adamw", 5, 1e-5, True), ("sgd", 1, 1e-2, True), ("sgd", 5, 1e-2, False),
]  # fmt: skip


@pytest.mark.parametrize("known_to", ["fp32", "bf16"])
@pytest.mark.parametrize("made", SMALL_RATES)
def test_the_bits_of_a_run_bound_how_often_it_stands_in_a_message_by_chance(made, known_to):
    """A run of b bits stands at a given place with a probability of at most 2^-b: so the sum of 2^b over all
    that do by chance is at most the number of places. The message is made in the same way as what is private,
    which is the worst there is."""
    b, message = trained(1, *made), trained(2, *made)
    if known_to == "bf16":
        b, message = rounded_to_bf16(b), rounded_to_bf16(message)
    information = private_values([{"b": b}]).information
    for length in (1, 2, 3, 4):
        windows = np.lib.stride_tricks.sliding_window_view
        known, sent = (windows(v.view(np.uint32), length) for v in (b, message))
        seen, often = np.unique(sent, axis=0, return_counts=True)
        counts = dict(zip(map(bytes, seen), often, strict=True))
        bits = information[length:] - information[:-length]
        chance = sum(counts.get(bytes(run), 0) * 2.0**bit for run, bit in zip(known, bits, strict=True))
        assert chance <= len(known) * len(sent), length


@pytest.mark.parametrize("made", SMALL_RATES)
def test_no_honest_message_is_accused_and_none_with_b_in_it_passes(made):
    private = private_values([{"b": trained(1, *made)}, {"b": trained(1, *made) * np.float32(1.5)}])
    for seed in range(2, 5):
        other = trained(seed, *made)
        assert matches(b"?" + other.tobytes(), private) == 0
        for values in ("fp16", "bf16", "int8"):
            payload = Dense(values).encode(other, np.random.default_rng(seed))
            assert matches(payload.tobytes() * 2, private) == 0
    exact = made == ("adamw", 1, 1e-3, False)  # most steps are the rate to the last bit: few runs tell
    assert matches(b"?" + trained(1, *made).tobytes(), private) > (0 if exact else private.words.size / 4)


@pytest.mark.parametrize(
    ("size", "seen"), [(1e-6, True), (1e-3, True), (1e-2, True), (1e-1, True), (1e1, False)]
)
def test_the_b_of_one_step_of_adamw_is_found_down_to_a_bit_and_a_half_a_value(size, seen):
    """Plain gradients of one size: the larger they are, the nearer each step is to the learning rate."""
    ours, theirs = (first_step(seed, size) for seed in (1, 2))
    private = private_values([{"b": ours}])
    assert (private.information[-1] > 1.5 * ours.size) == seen
    assert (matches(b"?" + theirs.tobytes() + ours.tobytes() + b"!", private) > 0.9 * ours.size) == seen
    assert matches(b"?" + theirs.tobytes(), private) == 0
    assert matches(ours[:8].tobytes() + theirs[:900].tobytes(), private) == (8 if size == 1e-6 else 0)


def first_step(seed: int, size: float) -> np.ndarray:
    b = torch.zeros(384, 8, requires_grad=True)
    b.grad = torch.randn(b.shape, generator=torch.Generator().manual_seed(seed)) * size
    torch.optim.AdamW([b], lr=1e-3).step()
    return b.detach().numpy().ravel()


@pytest.mark.parametrize("size", [1e-2, 1e-1, 1.0])
@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_the_bits_of_first_steps_bound_chance_as_well(size, length):
    windows = np.lib.stride_tricks.sliding_window_view
    ours, theirs = (first_step(seed, size) for seed in (1, 2))
    information = private_values([{"b": ours}]).information
    known, sent = (windows(v.view(np.uint32), length) for v in (ours, theirs))
    often: dict[bytes, int] = {}
    for run in sent:
        often[run.tobytes()] = often.get(run.tobytes(), 0) + 1
    bits = information[length:] - information[:-length]
    chance = sum(often.get(run.tobytes(), 0) * 2.0**bit for run, bit in zip(known, bits, strict=True))
    assert chance <= len(known) * len(sent)


def test_neighbours_that_first_steps_of_one_rate_make_are_no_leak():
    """What stopped honest replies: two values of a message that are neighbours in B as well."""
    b = trained(1, "adamw", 1, 1e-3, True)
    message = RNG.normal(size=1000).astype(np.float32)
    message[500:502] = b[40:42]
    assert matches(b"odd" + message.tobytes(), private_values([{"b": b}])) == 0


def test_messages_without_private_values_are_not_accused():
    rng = np.random.default_rng(1)
    for size in (0, 1, 7, 8, 15, 16, 17, 4096, 100_000):
        assert matches(rng.bytes(size), PRIVATE) == 0
    assert matches(RNG.normal(size=5000).astype(np.float32).tobytes(), PRIVATE) == 0


@pytest.mark.parametrize("form", [np.ndarray.tobytes, saved, in_protobuf])
def test_b_is_found_in_every_serialised_form_and_a_is_not(form):
    assert matches(form(B["x.lora_B.weight"]), PRIVATE) == VALUES
    assert matches(form(A["x.lora_A.weight"]), PRIVATE) == 0


def test_a_few_values_of_a_large_b_are_found_in_a_message_of_ordinary_size():
    """The longer the message and the more there is to find, the rarer a run must be: four values nearly
    always do, five always."""
    rng = np.random.default_rng(3)
    b = rng.normal(size=100_000).astype(np.float32)
    private, message = private_values([{"b": b}]), rng.normal(size=300_000).astype(np.float32)
    begins = rng.integers(0, b.size - 6, size=40)
    for length, least in ((4, 30), (6, 40)):
        found = 0
        for begin in begins:
            planted = message.copy()
            planted[777 : 777 + length] = b[begin : begin + length]
            found += matches(b"?" + planted.tobytes(), private) == length
        assert found >= least


def test_a_bias_of_seven_values_is_searched_for():
    bias = RNG.normal(size=7).astype(np.float32)
    private = private_values([{"bias": bias, "b": RNG.normal(size=5000).astype(np.float32)}])
    message = RNG.normal(size=50_000).astype(np.float32).tobytes()
    assert matches(message + bias.tobytes() + message, private) == 7
    assert private_values([{"bias": bias[:3]}]).size == 0


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, 0.1])
def test_zeros_and_repeated_values_say_nothing(value):
    private = private_values([{"b": np.full((30, 50), value, np.float32)}])
    assert matches(np.full(3000, value, np.float32).tobytes(), private) == 0


def test_whole_numbers_and_values_of_few_digits_say_nothing():
    for values in (np.arange(30), np.arange(30) / 8):
        values = values.astype(np.float32)
        assert matches(values.tobytes(), private_values([{"b": values}])) == 0


def test_zeros_between_private_values_do_not_hide_them():
    values = RNG.normal(size=30).astype(np.float32)
    values[::3] = 0
    assert matches(struct.pack("<f", 1) + values.tobytes(), private_values([{"b": values}])) == 30


def test_what_is_public_as_well_is_no_secret():
    both = {**A, **B}
    assert matches(A["x.lora_A.weight"].tobytes(), private_values([both])) == A["x.lora_A.weight"].size
    private = private_values([both], public=[A])
    assert matches(A["x.lora_A.weight"].tobytes(), private) == 0
    assert matches(B["x.lora_B.weight"].tobytes(), private) == VALUES


def test_a_client_without_state_has_nothing_to_find():
    assert private_values([]).size == private_values([{}]).size == 0
    assert matches(B["x.lora_B.weight"].tobytes(), private_values([])) == 0


def test_values_of_different_tensors_make_no_run():
    values = RNG.normal(size=6).astype(np.float32)
    apart = private_values([{"b": values[:3], "c": values[3:]}])
    assert matches(values.tobytes(), apart) == apart.size == 0
