"""The one door for the bytes of others: what was sent comes in to the bit, nothing else does."""

import io
import json
import pickle
import random
import tracemalloc
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from flwr.common import ndarrays_to_parameters
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.errors import WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, TensorSpec

LAYOUT = Layout((TensorSpec("a", (2, 3), "A"), TensorSpec("b", (4,), "A")))
VECTOR = np.random.default_rng(0).normal(size=LAYOUT.size).astype(np.float32)
BROADCAST = wire.BroadcastHeader(round=3, layout=LAYOUT.digest, digest=wire.vector_digest(VECTOR))
UPLOAD = wire.UploadHeader(
    client="7",
    round=3,
    layout=LAYOUT.digest,
    digest=wire.vector_digest(VECTOR),
    examples=60,
    private_before="b" * 16,
    private_after="a" * 16,
    report={"loss": 0.5, "steps": 5},
)
HEADERS = [BROADCAST, replace(BROADCAST, measure_before=True, reference=True), UPLOAD]
BOTH = pytest.mark.parametrize("header", [BROADCAST, UPLOAD], ids=["broadcast", "upload"])
WRONG = [None, True, 1, 1.5, "text", [], {}, {"loss": "low"}, {"loss": None}, {"loss": True}]
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**9), 10**9)


def sent(*arrays: np.ndarray) -> list[bytes]:
    """What Flower makes of arrays."""
    return ndarrays_to_parameters(list(arrays)).tensors


def npy(text: str, values: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A NumPy file with a header of one's own."""
    padded = text.encode("latin1")
    return b"\x93NUMPY" + version + len(padded).to_bytes(2, "little") + padded + values


def announced(shape: str, descr: str = "'<f4'", values: bytes = b"") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n", values)


def read(content: dict, kind: type) -> object:
    return wire.read_header({wire.KEY: json.dumps(content)}, kind)


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_comes_back_equal(header):
    entries = wire.write_header(header)
    assert set(entries) == {wire.KEY}
    assert wire.read_header(entries | {"another": 1.0}, type(header)) == header


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=20),
    st.integers(0, 10**6),
    st.integers(-5, 10**12),
    st.dictionaries(st.text(max_size=8), NUMBERS, max_size=4),
)
def test_any_upload_header_comes_back_equal(client, round_, examples, report):
    header = replace(UPLOAD, client=client, round=round_, examples=examples, report=report)
    assert wire.read_header(wire.write_header(header), wire.UploadHeader) == header


@BOTH
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_field_of_another_type_is_refused_by_name(header, data):
    content = asdict(header)
    name = data.draw(st.sampled_from(sorted(content)))
    fits = {"report": lambda v: v == {}}.get(name, lambda v: type(v) is type(content[name]))
    value = data.draw(st.sampled_from([v for v in WRONG if not fits(v)]))
    with pytest.raises(WireError, match=name):
        read(content | {name: value}, type(header))


@BOTH
def test_a_missing_required_field_or_an_extra_one_is_refused(header):
    content = asdict(header)
    for name in ("round", "layout", "digest"):
        with pytest.raises(WireError, match=name):
            read({k: v for k, v in content.items() if k != name}, type(header))
    with pytest.raises(WireError, match="extra"):
        read(content | {"extra": 1}, type(header))


@BOTH
@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
def test_another_version_is_refused(header, version):
    with pytest.raises(WireError, match="version"):
        read(asdict(header) | {"version": version}, type(header))


@BOTH
def test_a_negative_round_is_refused(header):
    with pytest.raises(WireError, match="round"):
        read(asdict(header) | {"round": -1}, type(header))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_a_report_holds_finite_numbers_only(number):
    text = json.dumps(asdict(UPLOAD)).replace('"loss": 0.5', f'"loss": {number}')
    assert number in text
    with pytest.raises(WireError, match="report"):
        wire.read_header({wire.KEY: text}, wire.UploadHeader)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        b"{}",
        7,
        "",
        "null",
        "[]",
        "{",
        '{"round": 1',
        "[" * 60_000,
        '{"round":' + "9" * 5000 + "}",
        json.dumps(asdict(UPLOAD) | {"error": "x" * wire.MAX_HEADER_BYTES}),
    ],
)
def test_what_is_no_header_is_refused(entry):
    for kind in (wire.BroadcastHeader, wire.UploadHeader):
        with pytest.raises(WireError, match="header"):
            wire.read_header({wire.KEY: entry}, kind)


def test_a_message_without_a_header_and_a_header_of_the_other_kind_are_refused():
    with pytest.raises(WireError, match="no usable header"):
        wire.read_header({}, wire.UploadHeader)
    with pytest.raises(WireError, match="unreadable"):
        wire.read_header(wire.write_header(UPLOAD), wire.BroadcastHeader)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_what_flower_serialises_comes_in_to_the_bit(size, seed):
    layout = Layout((TensorSpec("a", (size,), "A"),))
    vector = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    received = wire.read_vector(sent(vector), layout)
    assert received.tobytes() == vector.tobytes()
    assert received.dtype == np.float32
    assert received.shape == (size,)
    assert not received.flags.writeable


def test_a_strided_vector_comes_in_as_its_values():
    strided = np.repeat(VECTOR, 2)[::2]
    np.testing.assert_array_equal(wire.read_vector(sent(strided), LAYOUT), VECTOR)


@pytest.mark.parametrize(
    "array",
    [
        VECTOR.astype(np.float64),
        VECTOR.astype(np.float16),
        VECTOR.astype(">f4"),
        VECTOR.astype(np.complex64),
        VECTOR.view(np.int32),
        VECTOR.astype(str),
        VECTOR[:-1],
        np.append(VECTOR, np.float32(0)),
        VECTOR[None],
        VECTOR.reshape(2, 5),
        VECTOR[:1],
        np.zeros((0, 10**9), np.float32),
        np.zeros((), np.float32),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_another_dtype_or_shape_is_refused_and_never_cast_or_broadcast(array):
    shape = str(array.shape)
    for check in (lambda: wire.read_vector(sent(array), LAYOUT), lambda: wire.check_vector([array], LAYOUT)):
        with pytest.raises(WireError, match=r"expected float32 \(10,\), got") as caught:
            check()
        assert shape in str(caught.value)


@pytest.mark.parametrize("count", [0, 2])
def test_a_message_is_one_array(count):
    with pytest.raises(WireError, match=f"one array, got {count}"):
        wire.read_vector(sent(*[VECTOR] * count), LAYOUT)
    with pytest.raises(WireError, match=f"one array, got {count}"):
        wire.check_vector([VECTOR] * count, LAYOUT)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_refused(bad):
    vector = VECTOR.copy()
    vector[[2, 5]] = bad
    for check in (
        lambda: wire.read_vector(sent(vector), LAYOUT),
        lambda: wire.check_vector([vector], LAYOUT),
    ):
        with pytest.raises(WireError, match="2 values are NaN or infinite"):
            check()


def test_a_pickle_is_refused_and_not_run():
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('the pickle was run')",)

    stream = io.BytesIO()
    np.save(stream, np.array([Bomb()], dtype=object), allow_pickle=True)
    for content in (pickle.dumps(Bomb()), stream.getvalue()):
        with pytest.raises(WireError, match="expected float32"):
            wire.read_vector([content], LAYOUT)


@pytest.mark.parametrize(
    "content",
    [
        announced("(1000000000000,)"),
        announced("(10,)"),
        announced("(0, 1000000000)"),
        announced("(10,)", "'(1000000000000,)f4'"),
        announced("(1000000000000, 1000000000000)", "'|O'"),
        announced("(10,)", "'|S1000000000000'", VECTOR.tobytes()),
        sent(VECTOR)[0].replace(b"(10,), }", b"(10**9,)"),
    ],
)
def test_a_header_that_announces_much_is_refused_before_anything_is_allocated(content):
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            wire.read_vector([content], LAYOUT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy("("),
        npy("'" * 3),
        npy("{[]: 1}"),
        npy("{1: 2, 'descr': 3}"),
        npy("(" * 1000),
        npy("-" * 1000 + "1"),
        npy("{'descr': [('a', '<f4', 1.5)], 'fortran_order': False, 'shape': (10,)}"),
        npy("\0"),
        npy(" " * 60_000),
        sent(VECTOR)[0].replace(b"\x01\x00v", b"\x02\x00v", 1),
        announced("(10L,)", values=VECTOR.tobytes()),
    ],
)
def test_no_text_in_a_header_brings_anything_but_a_wire_error(content):
    with pytest.raises(WireError, match=r"expected float32 \(10,\)"):
        wire.read_vector([content], LAYOUT)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A few bytes set, cut, inserted or doubled; one in four is noise altogether."""
    if rng.random() < 0.25:
        return rng.randbytes(rng.randrange(0, 200))
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0:
                changed[at : at + 1] = rng.randbytes(1)
            case 1:
                del changed[at : at + rng.randint(1, 9)]
            case 2:
                changed[at:at] = rng.randbytes(rng.randint(1, 9))
            case 3:
                changed[at:at] = changed[at : at + rng.randint(1, 20)]
    return bytes(changed)


def test_of_two_thousand_altered_messages_none_is_accepted_and_none_does_harm():
    rng, original, refused = random.Random(0), sent(VECTOR)[0], 0
    while refused < 2000:
        content = mutated(original, rng)
        if content == original:
            continue
        with pytest.raises(WireError):
            wire.check_belongs(UPLOAD, wire.read_vector([content], LAYOUT), LAYOUT)
        refused += 1
    wire.check_belongs(UPLOAD, wire.read_vector([original], LAYOUT), LAYOUT)


def test_of_a_thousand_altered_headers_each_is_refused_or_reads_as_what_it_says():
    rng, original = random.Random(1), wire.write_header(UPLOAD)[wire.KEY]
    known = {f.name for f in fields(wire.UploadHeader)}
    for _ in range(1000):
        text = mutated(original.encode(), rng).decode("latin1")
        try:
            header = wire.read_header({wire.KEY: text}, wire.UploadHeader)
        except WireError:
            continue
        content = json.loads(text)
        assert content.keys() <= known
        assert {**asdict(header), **content} == asdict(header)


@BOTH
def test_header_vector_and_layout_belong_together(header):
    wire.check_belongs(header, VECTOR, LAYOUT)
    other = Layout((TensorSpec("a", (2, 3), "A"), TensorSpec("b", (4,), "B")))
    assert other.size == LAYOUT.size
    with pytest.raises(WireError, match=other.digest):
        wire.check_belongs(header, VECTOR, other)
    for changed in (np.nextafter(VECTOR, np.float32(9)), VECTOR[::-1], VECTOR[:-1], -VECTOR):
        with pytest.raises(WireError, match="digest"):
            wire.check_belongs(header, changed, LAYOUT)


@pytest.mark.parametrize("round_", [2, 4])
def test_an_upload_of_another_round_is_refused(round_):
    wire.check_upload(UPLOAD, 3)
    with pytest.raises(WireError, match=f"answers round 3, this is round {round_}"):
        wire.check_upload(UPLOAD, round_)


@pytest.mark.parametrize("examples", [0, -1, wire.MAX_EXAMPLES + 1])
def test_an_unbelievable_number_of_examples_is_refused(examples):
    with pytest.raises(WireError, match=str(examples)):
        wire.check_upload(replace(UPLOAD, examples=examples), 3)


@pytest.mark.parametrize("examples", [1, wire.MAX_EXAMPLES])
def test_the_bounds_of_examples_are_believed(examples):
    wire.check_upload(replace(UPLOAD, examples=examples), 3)


def test_a_clients_own_error_is_passed_on():
    with pytest.raises(WireError, match=r"^TrainingError: the loss became nan$"):
        wire.check_upload(replace(UPLOAD, error="TrainingError: the loss became nan", round=9), 3)
