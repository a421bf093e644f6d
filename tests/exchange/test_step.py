"""Messages of split learning: what is written is read again, and nothing else gets in."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.errors import WireError
from fedsa_lora.exchange.step import DOWN, KEY, UP, Step, StepFormat, is_step

WIDTH = 4
FORMAT = StepFormat("fp32", WIDTH, most=60)


def states(batch=2, tokens=3, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, tokens, WIDTH)).astype(np.float32)


def up(**changes):
    mask = np.array([[True, True, True], [True, False, False]])
    fields = {"number": 3, "tensors": {"h1": states(), "g2": states(seed=1)}, "mask": mask, "loss": 0.5}
    return Step(**fields | changes)


def written(step=None, form=FORMAT):
    return form.write(step or up(), np.random.default_rng(0))


def with_header(**changes):
    entries = written()
    return entries | {KEY: json.dumps(json.loads(entries[KEY]) | changes)}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 99))
def test_what_is_written_in_fp32_is_read_to_the_bit(batch, tokens, last, stepped, number):
    mask = np.random.default_rng(number).random((batch, tokens)) < 0.5
    mask[:, 0] = True
    norms = np.array([0.1, 1e-30], np.float32) if stepped else None
    step = Step(number, {"h1": states(batch, tokens, number)}, mask, last, stepped, norms, loss=0.25)
    read = FORMAT.read(written(step), UP)
    assert np.array_equal(read.tensors["h1"], step.tensors["h1"])
    assert np.array_equal(read.mask, mask)
    assert (read.norms is None) if norms is None else np.array_equal(read.norms, norms)
    assert (read.number, read.last, read.stepped, read.loss) == (number, last, stepped, 0.25)


@pytest.mark.parametrize(("name", "bytes_", "error"), [("bf16", 2, 2**-8), ("int8", 1 + 4 / WIDTH, 1 / 127)])
def test_a_shorter_format_takes_fewer_bytes_and_errs_little(name, bytes_, error):
    form = StepFormat(name, WIDTH, most=60)
    step = up()
    entries = written(step, form)
    assert len(entries[f"{KEY}/h1"]) == bytes_ * step.tensors["h1"].size
    read = form.read(entries, UP).tensors["h1"]
    largest = np.abs(step.tensors["h1"]).max(axis=2, keepdims=True)
    assert (np.abs(read - step.tensors["h1"]) <= error * largest).all()


def test_an_answer_that_ends_an_exchange_has_no_states():
    read = FORMAT.read(written(Step(7, stepped=True, norms=np.float32([0.5]))), UP)
    assert (read.tensors, read.mask, read.norms.tolist()) == ({}, None, [0.5])
    assert is_step(written())
    assert not is_step({"fedsa": "{}"})


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({}, "no usable header"),
        ({KEY: "{"}, "unreadable"),
        ({KEY: "[" * 200_000}, "unreadable"),
        ({KEY: " " * (2 << 20)}, "no usable header"),
        (with_header(number=-1), "other types"),
        (with_header(number=True), "other types"),
        (with_header(last=1), "other types"),
        (written() | {f"{KEY}/norms": b"abc"}, "float32"),
        (written() | {f"{KEY}/norms": np.float32([-1]).tobytes()}, "not negative"),
        (written() | {f"{KEY}/norms": np.float32([np.nan]).tobytes()}, "finite"),
        (with_header(loss=float("inf")), "other types"),
        (with_header(more=1), "other types"),
        (with_header(shapes={"h2": [2, 3]}), "expected some of h1, g2"),
        (with_header(shapes={"labels": [2, 3]}), "expected some of h1, g2"),
        (with_header(shapes={"h1": [2, 31]}), "at most 60"),
        (with_header(shapes={"h1": [10**9, 10**9]}), "at most 60"),
        (with_header(shapes={"h1": [2, -3]}), "shape of batch and tokens"),
        (with_header(shapes={"h1": [2, 2]}), "bytes, expected 64"),
        (written() | {f"{KEY}/h1": b"abc"}, "3 bytes, expected 96"),
        (written() | {f"{KEY}/h1": "abc"}, "0 bytes, expected 96"),
        (written() | {f"{KEY}/h1": np.full(24, np.nan, np.float32).tobytes()}, "NaN|finite"),
        (written() | {f"{KEY}/mask": b""}, "mask"),
        (written() | {f"{KEY}/mask": bytes(1)}, "begins with padding"),
    ],
)
def test_any_other_content_is_refused_by_name(entries, told):
    with pytest.raises(WireError, match=told):
        FORMAT.read(entries, UP)


def test_a_client_takes_in_what_comes_down_alone():
    with pytest.raises(WireError, match="expected some of h2, g1"):
        FORMAT.read(written(), DOWN)
