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

from fedsa_lora.exchange.witness import ONE_SIZE, matches, private_pairs

RNG = np.random.default_rng(0)
A = {"x.lora_A.weight": RNG.normal(size=(4, 8)).astype(np.float32)}
B = {"x.lora_B.weight": RNG.normal(size=(8, 4)).astype(np.float32)}
PAIRS = private_pairs([B])
ROWS = sum(array.size - 1 for array in B.values())

finite = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool)


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def in_protobuf(array: np.ndarray) -> bytes:
    """A Flower message with another array and some text around."""
    arrays = parameters_to_arrayrecord(ndarrays_to_parameters([*A.values(), array]), keep_input=True)
    record = RecordDict({"p": arrays, "c": ConfigRecord({"text": "round three"})})
    return recorddict_to_proto(record).SerializeToString()


def of_two_sizes(pair: tuple[float, float]) -> bool:
    left, right = (int(np.float32(abs(value)).view(np.int32)) for value in pair)
    return abs(left - right) > ONE_SIZE


@settings(max_examples=100, deadline=None)
@given(st.tuples(finite, finite).filter(of_two_sizes), st.binary(max_size=40), st.binary(max_size=40))
def test_a_pair_of_private_values_is_found_at_any_offset(pair, before, after):
    pairs = private_pairs([{"b": np.array(pair, np.float32)}])
    assert matches(before + struct.pack("<2f", *pair) + after, pairs) >= 1


def test_pairs_that_differ_in_their_last_bit_alone_are_both_found():
    value = np.float32(0.1)
    beside = np.nextafter(value, np.float32(1))
    pairs = private_pairs([{"b": np.array([value, 3, beside, 3], np.float32)}])
    assert matches(struct.pack("<2f", value, 3), pairs) == matches(struct.pack("<2f", beside, 3), pairs) == 1


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_the_number_of_matches_is_that_of_a_search_byte_by_byte(noise):
    message = noise[: len(noise) // 2] + B["x.lora_B.weight"].tobytes()[:24] + noise[len(noise) // 2 :]
    wanted = {pair.tobytes() for pair in PAIRS}
    by_hand = sum(message[i : i + 8] in wanted for i in range(len(message) - 7))
    assert by_hand >= 5
    assert matches(message, PAIRS) == by_hand


def test_a_message_is_not_accused_for_steps_that_all_have_the_size_of_the_learning_rate():
    rng = np.random.default_rng(2)
    one, other = (torch.from_numpy(rng.normal(size=4096).astype(np.float32) * 1e-3) for _ in "AB")
    first_steps = []
    for gradient in (one, other):
        value = torch.zeros(4096, requires_grad=True)
        value.grad = gradient
        torch.optim.AdamW([value], lr=4e-3).step()
        first_steps.append(value.detach().numpy())
    b, message = first_steps
    assert len(set(np.sign(b))) == 2
    assert matches(message.tobytes(), private_pairs([{"b": b}])) == 0


def test_messages_without_private_values_are_not_accused():
    rng = np.random.default_rng(1)
    for size in (0, 1, 7, 8, 9, 4096, 100_000):
        assert matches(rng.bytes(size), PAIRS) == 0
    assert matches(RNG.normal(size=5000).astype(np.float32).tobytes(), PAIRS) == 0


@pytest.mark.parametrize("form", [np.ndarray.tobytes, saved, in_protobuf])
def test_b_is_found_in_every_serialised_form_and_a_is_not(form):
    assert matches(form(B["x.lora_B.weight"]), PAIRS) >= ROWS
    assert matches(form(A["x.lora_A.weight"]), PAIRS) == 0


def test_two_values_out_of_a_tensor_are_enough():
    assert matches(b"?" + B["x.lora_B.weight"].ravel()[5:7].tobytes() + b"?", PAIRS) == 1


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5])
def test_zeros_and_repeated_values_say_nothing(value):
    pairs = private_pairs([{"b": np.full((3, 5), value, np.float32)}])
    assert matches(np.full(100, value, np.float32).tobytes(), pairs) == 0


def test_a_pair_with_a_zero_says_nothing():
    array = np.array([1.0, 0.0, 2.0, -0.0, 3.0], np.float32)
    assert private_pairs([{"b": array}]).size == 0


def test_what_is_public_as_well_is_no_secret():
    both = {**A, **B}
    assert matches(A["x.lora_A.weight"].tobytes(), private_pairs([both])) == A["x.lora_A.weight"].size - 1
    pairs = private_pairs([both], public=[A])
    assert matches(A["x.lora_A.weight"].tobytes(), pairs) == 0
    assert matches(B["x.lora_B.weight"].tobytes(), pairs) == ROWS


def test_a_client_without_state_has_nothing_to_find():
    assert private_pairs([]).size == 0
    assert matches(B["x.lora_B.weight"].tobytes(), private_pairs([])) == 0


def test_values_of_different_tensors_make_no_pair():
    apart = private_pairs([{"b": np.array([1.5], np.float32), "c": np.array([2.5], np.float32)}])
    assert apart.size == 0
