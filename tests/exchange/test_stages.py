"""Stages of an upload: in order on the client, in reverse on the server, and what is left meanwhile."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedsa_lora.errors import WireError
from fedsa_lora.exchange.codec import Dense
from fedsa_lora.exchange.selection import RandomK, Threshold, TopK
from fedsa_lora.exchange.stages import Clipped, Coded, Owed, Stage, Stages, upload

VECTORS = arrays(np.float32, st.integers(0, 60), elements=st.floats(-1e4, 1e4, width=32))
CODECS = [Dense(), Dense("int8"), TopK(0.3), RandomK(0.3, error_feedback=False), Threshold(1.0, "fp16")]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(size: int, seed: int = 0) -> np.ndarray:
    return rng(seed).normal(size=size).astype(np.float32)


@dataclass(frozen=True)
class Masked(Stage):
    """Adds a secret number to each byte of a payload."""

    secret: int

    def apply(self, update, residual, rng):
        return (update.view(np.uint8) + np.uint8(self.secret)).view(update.dtype), residual

    def undo(self, sent, size):
        return (sent.view(np.uint8) - np.uint8(self.secret)).view(sent.dtype)


@dataclass(frozen=True)
class Turned(Stage):
    """Reverses a payload: does not commute with a codec, nor with anything that looks at places."""

    def apply(self, update, residual, rng):
        return update[::-1].copy(), residual

    def undo(self, sent, size):
        return sent[::-1].copy()


@every_codec
def test_what_the_server_undoes_is_what_the_codec_sent_of_what_was_clipped(codec):
    update, before = normal(200), normal(200, 1) if codec.leaves else None
    stages = upload(codec, 1.5)
    payload, left = stages.apply(update, before, rng(3))
    total = update if before is None else update + before
    clipped, _ = Clipped(1.5).apply(total, None, rng())
    assert payload.tobytes() == codec.encode(clipped, rng(3)).tobytes()
    sent = stages.undo(payload, 200).dense()
    assert sent.tobytes() == upload(codec).undo(payload, 200).dense().tobytes()
    assert (left is not None) == codec.leaves
    if left is not None:
        np.testing.assert_allclose(sent + left, clipped, rtol=1e-5, atol=1e-6)
    assert update.tobytes() == normal(200).tobytes()
    assert before is None or before.tobytes() == normal(200, 1).tobytes()


@every_codec
@pytest.mark.parametrize("hiding", [(Masked(7),), (Turned(), Masked(9)), (Masked(9), Turned(), Masked(1))])
def test_stages_that_hide_a_payload_are_undone_in_reverse_and_leave_the_residual_alone(codec, hiding):
    plain, hidden = upload(codec), Stages((*upload(codec).stages, *hiding))
    payload, left = plain.apply(normal(200), None, rng())
    other, other_left = hidden.apply(normal(200), None, rng())
    assert payload.tobytes() != other.tobytes()
    assert hidden.undo(other, 200).dense().tobytes() == plain.undo(payload, 200).dense().tobytes()
    if codec.leaves:
        np.testing.assert_array_equal(left, other_left)


def test_without_a_bound_there_is_no_clipping_and_the_order_is_that_of_the_client():
    assert upload(Dense()).stages == (Owed(), Coded(Dense()))
    assert upload(Dense(), 2.0).stages == (Owed(), Clipped(2.0), Coded(Dense()))


@settings(max_examples=60, deadline=None)
@given(vector=VECTORS, residual=st.booleans(), norm=st.floats(1e-3, 1e3))
@pytest.mark.parametrize("codec", [Dense(), TopK(ratio=0.3), Dense(values="fp16")], ids=lambda c: c.name)
def test_what_is_sent_is_no_longer_than_the_bound_and_what_was_clipped_is_no_residual(
    codec, vector, residual, norm
):
    before = normal(vector.size, 1) if residual and not codec.lossless else None
    total = vector if before is None else vector + before
    payload, left = upload(codec, norm).apply(vector, before, rng())
    decoded = codec.decode(payload, vector.size).dense().astype(float)
    assert np.linalg.norm(decoded) <= norm * (1 + 2e-3)
    scale = min(1, norm / max(float(np.linalg.norm(total.astype(float))), 1e-300))
    kept = decoded if left is None else decoded + left
    np.testing.assert_allclose(kept, total * scale, rtol=1e-5, atol=1e-6 * norm)


def test_what_is_short_enough_is_not_touched():
    vector = normal(100)
    short, _ = Clipped(float(np.linalg.norm(vector)) * 1.001).apply(vector, None, rng())
    assert short is vector
    clipped, _ = Clipped(0.5).apply(vector, None, rng())
    np.testing.assert_allclose(np.linalg.norm(clipped), 0.5, rtol=1e-6)
    with pytest.raises(WireError, match="NaN or infinite"):
        upload(Dense(), 1.0).apply(np.array([np.inf, 1], np.float32), None, rng())
