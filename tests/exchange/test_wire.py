"""The one door for the bytes of others: what was sent comes in to the bit, nothing else does."""

import io
import json
import math
import pickle
import random
import tracemalloc
import zlib
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from flwr.common import ndarrays_to_parameters
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.errors import WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, TensorSpec, check_vector
from fedsa_lora.exchange.measure import CLASSES, Measure
from fedsa_lora.exchange.reported import of_evaluation, of_training
from fedsa_lora.exchange.vector import read_array, vector_digest

LAYOUT = Layout((TensorSpec("a", (2, 3), "A"), TensorSpec("b", (4,), "A")))
VECTOR = np.random.default_rng(0).normal(size=LAYOUT.size).astype(np.float32)
BROADCAST = wire.BroadcastHeader(
    round=3, layout=LAYOUT.digest, digest=vector_digest(VECTOR), shared="2", carried="3"
)
CHANGE = replace(
    BROADCAST,
    joining="1",
    base=2,
    codec="top_k 0.1 int8/256",
    merge=(4, 0),
    total=120,
    measure_before=True,
    reference=True,
)
UPLOAD = wire.UploadHeader(
    client="7",
    round=3,
    layout=LAYOUT.digest,
    digest=vector_digest(VECTOR),
    examples=60,
    shared="3",
    codec="dense fp32",
    private_before="b" * 16,
    private_after="a" * 16,
    report={"loss": 0.5, "steps": 5},
)
REPORTING = replace(UPLOAD, counts=(30, 0, 30), scores=(0.25, 1, 0.0))
HEADERS = [BROADCAST, CHANGE, UPLOAD, REPORTING]
BOTH = pytest.mark.parametrize("header", [CHANGE, REPORTING], ids=["broadcast", "upload"])
WRONG = [None, True, 1, 1.5, "text", [], {}, {"loss": "low"}, {"loss": None}, {"loss": True}]
MEASURES = (*CLASSES, Measure("perplexity", (1.0, 1e150), higher_is_better=False))
TRAINED, EVALUATED = of_training(MEASURES, True), of_evaluation(MEASURES, True)
LISTS = ("merge", "counts", "scores")
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**9), 10**9)
BYTES = VECTOR.nbytes


def sent(*arrays: np.ndarray) -> list[bytes]:
    """What Flower makes of arrays."""
    return ndarrays_to_parameters(list(arrays)).tensors


def received(tensors: list[bytes], dtype: type = np.float32, max_bytes: int = BYTES) -> np.ndarray:
    return read_array(tensors, dtype, max_bytes)


def npy(text: str, values: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A NumPy file with a header of one's own."""
    padded = text.encode("latin1")
    return b"\x93NUMPY" + version + len(padded).to_bytes(2, "little") + padded + values


def announced(shape: str, descr: str = "'<f4'", values: bytes = b"") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n", values)


def read(content: dict, kind: type) -> object:
    return wire.read_header(entries_of(json.dumps(content), kind), kind)


def entries_of(text: str, kind: type) -> dict:
    """The text of a header as it comes in."""
    return {wire.KEY: wire.deflated(text) if kind is wire.UploadHeader else text}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_comes_back_equal(header):
    entries = wire.write_header(header)
    assert set(entries) == {wire.KEY}
    assert wire.read_header(entries | {"another": 1.0}, type(header)) == header


@settings(max_examples=60, deadline=None)
@given(
    client=st.text(max_size=20),
    round=st.integers(0, 10**6),
    examples=st.integers(-5, 10**12),
    shared=st.text("0123456789abcdef", max_size=40),
    counts=st.lists(st.integers(0, wire.MAX_EXAMPLES), max_size=9).map(tuple),
    scores=st.lists(st.floats(0, allow_infinity=False), max_size=9).map(tuple),
    report=st.dictionaries(st.text(max_size=8), NUMBERS, max_size=4),
)
def test_any_upload_header_comes_back_equal(**values):
    header = replace(UPLOAD, **values)
    assert wire.read_header(wire.write_header(header), wire.UploadHeader) == header


@settings(max_examples=40, deadline=None)
@given(
    merge=st.lists(st.integers(0, 10**9), max_size=9).map(tuple),
    base=st.integers(0, 10**6),
    codec=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
    total=st.integers(0, 10**12),
)
def test_any_broadcast_header_comes_back_equal(**values):
    header = replace(BROADCAST, **values)
    assert wire.read_header(wire.write_header(header), wire.BroadcastHeader) == header


@BOTH
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_field_of_another_type_is_refused_by_name(header, data):
    content = asdict(header)
    name = data.draw(st.sampled_from(sorted(content)))
    fits = {"report": lambda v: v == {}} | {key: lambda v: v == [] for key in LISTS}
    fits = fits.get(name, lambda v: type(v) is type(content[name]))
    value = data.draw(st.sampled_from([v for v in WRONG if not fits(v)]))
    with pytest.raises(WireError, match=name):
        read(content | {name: value}, type(header))


@pytest.mark.parametrize(
    "values",
    ["[NaN]", "[Infinity]", "[-1]", "[null]", "[[1]]", '["1"]', "[true]", '"12"', "{}", "7", "[1e999]"],
)
@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_numbers_holds_finite_ones_none_negative_and_nothing_else(name, values):
    header = CHANGE if name == "merge" else REPORTING
    known = json.dumps(asdict(header)[name])
    text = json.dumps(asdict(header)).replace(f'"{name}": {known}', f'"{name}": {values}')
    assert values in text
    with pytest.raises(WireError, match=f"'{name}' must be a list of finite numbers, none negative"):
        wire.read_header(entries_of(text, type(header)), type(header))


@pytest.mark.parametrize(
    ("name", "value"),
    [("merge", 1.0), ("counts", 1.0), ("counts", wire.MAX_EXAMPLES + 1), ("scores", 10**400)],
)
def test_what_is_counted_is_whole_and_no_number_is_too_large(name, value):
    header = CHANGE if name == "merge" else REPORTING
    with pytest.raises(WireError, match=name):
        read(asdict(header) | {name: [1, value]}, type(header))


@pytest.mark.case(15)
@pytest.mark.parametrize("name", LISTS)
def test_a_giant_list_is_refused_unread(name):
    header = CHANGE if name == "merge" else REPORTING
    with pytest.raises(WireError, match="no usable header"):
        read(asdict(header) | {name: [0] * 10**6}, type(header))


@BOTH
def test_a_missing_required_field_or_an_extra_one_is_refused(header):
    content = asdict(header)
    for name in ("round", "layout", "digest"):
        with pytest.raises(WireError, match=name):
            read({k: v for k, v in content.items() if k != name}, type(header))
    with pytest.raises(WireError, match="extra"):
        read(content | {"extra": 1}, type(header))


@BOTH
@pytest.mark.parametrize("version", [0, wire.VERSION - 1, wire.VERSION + 1, "2", 2.0, True, None])
def test_another_version_is_refused(header, version):
    with pytest.raises(WireError, match="version"):
        read(asdict(header) | {"version": version}, type(header))


@BOTH
def test_a_negative_round_is_refused(header):
    with pytest.raises(WireError, match="round"):
        read(asdict(header) | {"round": -1}, type(header))


def test_a_negative_total_is_refused():
    with pytest.raises(WireError, match="'total' must not be negative"):
        read(asdict(CHANGE) | {"total": -1}, wire.BroadcastHeader)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 400])
def test_a_report_holds_finite_numbers_only(number):
    text = json.dumps(asdict(UPLOAD)).replace('"loss": 0.5', f'"loss": {number}')
    assert number in text
    with pytest.raises(WireError, match="report"):
        wire.read_header(entries_of(text, wire.UploadHeader), wire.UploadHeader)


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
        if isinstance(entry, str):
            with pytest.raises(WireError, match="header"):
                wire.read_header(entries_of(entry, kind), kind)


def test_a_message_without_a_header_and_a_header_of_the_other_kind_are_refused():
    with pytest.raises(WireError, match="no usable header"):
        wire.read_header({}, wire.UploadHeader)
    with pytest.raises(WireError, match="no usable header"):
        wire.read_header(wire.write_header(UPLOAD), wire.BroadcastHeader)
    with pytest.raises(WireError, match="unreadable"):
        read(asdict(UPLOAD), wire.BroadcastHeader)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.uint8]))
def test_what_flower_serialises_comes_in_to_the_bit(size, seed, dtype):
    vector = np.random.default_rng(seed).uniform(0, 255, size).astype(dtype)
    found = received(sent(vector), dtype, vector.nbytes)
    assert found.tobytes() == vector.tobytes()
    assert found.dtype == dtype
    assert found.shape == (size,)
    assert not found.flags.writeable


def test_a_strided_vector_comes_in_as_its_values():
    strided = np.repeat(VECTOR, 2)[::2]
    np.testing.assert_array_equal(received(sent(strided)), VECTOR)


def test_a_payload_may_be_shorter_than_the_most_but_not_a_byte_longer():
    assert received(sent(VECTOR), max_bytes=BYTES + 1).size == VECTOR.size
    with pytest.raises(WireError, match="announces 10 values"):
        received(sent(VECTOR), max_bytes=BYTES - 1)
    with pytest.raises(WireError, match="expected at most 0 of values"):
        received(sent(np.zeros(999, np.float32)), max_bytes=0)


OTHER = {
    "float64": VECTOR.astype(np.float64),
    "float16": VECTOR.astype(np.float16),
    "big-endian": VECTOR.astype(">f4"),
    "complex": VECTOR.astype(np.complex64),
    "integers": VECTOR.view(np.int32),
    "text": VECTOR.astype(str),
    "bytes": VECTOR.view(np.uint8),
    "a record": VECTOR.view([("x", "<f4")]),
    "pairs": VECTOR.view([("x", "<f4"), ("y", "<f4")]),
    "a row": VECTOR[None],
    "a matrix": VECTOR.reshape(2, 5),
    "in Fortran's order": np.asfortranarray(VECTOR.reshape(2, 5)),
    "a scalar": np.zeros((), np.float32),
    "nothing, very often": np.zeros((0, 10**9), np.float32),
}


@pytest.mark.case(9)
@pytest.mark.case(10)
@pytest.mark.parametrize("array", OTHER.values(), ids=OTHER)
def test_another_dtype_or_shape_is_refused_and_never_cast_or_broadcast(array):
    with pytest.raises(WireError, match="expected a vector of float32, got") as caught:
        received(sent(array), max_bytes=10**6)
    assert str(array.shape) in str(caught.value)
    with pytest.raises(WireError, match=r"expected float32 \(10,\), got"):
        check_vector(array, LAYOUT.size)


@pytest.mark.case(9)
@pytest.mark.parametrize("array", [VECTOR[:-1], np.append(VECTOR, np.float32(0)), VECTOR[:1], VECTOR[:0]])
def test_a_vector_of_another_length_is_refused(array):
    with pytest.raises(WireError, match=r"expected float32 \(10,\), got"):
        check_vector(array, LAYOUT.size)


@pytest.mark.case(11)
@pytest.mark.parametrize("count", [0, 2])
def test_a_message_is_one_array(count):
    with pytest.raises(WireError, match=f"one array, got {count}"):
        received(sent(*[VECTOR] * count))


@pytest.mark.case(7)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_refused(bad):
    vector = VECTOR.copy()
    vector[[2, 5]] = bad
    with pytest.raises(WireError, match="2 values are NaN or infinite"):
        check_vector(vector, LAYOUT.size)
    assert check_vector(VECTOR, LAYOUT.size) is VECTOR


@pytest.mark.case(10)
def test_a_pickle_is_refused_and_not_run():
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('the pickle was run')",)

    stream = io.BytesIO()
    np.save(stream, np.array([Bomb()], dtype=object), allow_pickle=True)
    for content in (pickle.dumps(Bomb()), stream.getvalue()):
        with pytest.raises(WireError, match="expected a vector"):
            received([content], max_bytes=10**6)


@pytest.mark.case(15)
@pytest.mark.parametrize("max_bytes", [BYTES, 10**15])
@pytest.mark.parametrize(
    "content",
    [
        announced("(1000000000000,)"),
        announced("(10,)"),
        announced("(-10,)"),
        announced("(0, 1000000000)"),
        announced("(10,)", "'(1000000000000,)f4'"),
        announced("(1000000000000, 1000000000000)", "'|O'"),
        announced("(10,)", "'|S1000000000000'", VECTOR.tobytes()),
        sent(VECTOR)[0].replace(b"(10,), }", b"(10**9,)"),
        sent(VECTOR)[0][:-1],
        sent(VECTOR)[0] + b"\0",
        sent(VECTOR)[0] + sent(VECTOR)[0],
    ],
)
def test_a_header_that_announces_what_is_not_there_is_refused_before_anything_is_allocated(
    content, max_bytes
):
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            received([content], max_bytes=max_bytes)
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
        announced("(True,)", values=VECTOR.tobytes()[:4]),
    ],
)
def test_no_text_in_a_header_brings_anything_but_a_wire_error(content):
    with pytest.raises(WireError):
        received([content], max_bytes=10**6)


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


def let_in(content: bytes) -> None:
    vector = received([content])
    wire.check_digest(UPLOAD, vector)
    check_vector(vector, LAYOUT.size)


@pytest.mark.case(14)
def test_of_two_thousand_altered_messages_none_is_accepted_and_none_does_harm():
    rng, original, refused = random.Random(0), sent(VECTOR)[0], 0
    while refused < 2000:
        content = mutated(original, rng)
        if content == original:
            continue
        with pytest.raises(WireError):
            let_in(content)
        refused += 1
    let_in(original)


def test_of_a_thousand_altered_headers_each_is_refused_or_reads_as_what_it_says():
    rng = random.Random(1)
    for original in (REPORTING, CHANGE):
        known = {f.name for f in fields(original)}
        for _ in range(500):
            text = mutated(json.dumps(asdict(original)).encode(), rng).decode("latin1")
            try:
                header = wire.read_header(entries_of(text, type(original)), type(original))
            except WireError:
                continue
            content, said = json.loads(text), json.loads(json.dumps(asdict(header)))
            assert content.keys() <= known
            assert {**said, **content} == said


def test_of_two_thousand_altered_deflated_headers_each_is_refused_or_reads_as_a_header():
    rng, original = random.Random(2), wire.write_header(REPORTING)[wire.KEY]
    read_ = 0
    for _ in range(2_000):
        try:
            header = wire.read_header({wire.KEY: mutated(original, rng)}, wire.UploadHeader)
        except WireError:
            continue
        read_ += 1
        assert wire.read_header(wire.write_header(header), wire.UploadHeader) == header
    assert read_ < 1_000


@pytest.mark.case(15)
def test_a_header_that_inflates_to_gigabytes_is_refused_after_its_first_part():
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    assert len(bomb) < wire.MAX_HEADER_BYTES
    tracemalloc.start()
    with pytest.raises(WireError, match="no usable header"):
        wire.read_header({wire.KEY: bomb}, wire.UploadHeader)
    assert tracemalloc.get_traced_memory()[1] < 4 * wire.MAX_HEADER_BYTES
    tracemalloc.stop()


def test_what_follows_a_header_or_is_cut_off_it_is_refused():
    whole = wire.write_header(UPLOAD)[wire.KEY]
    for content in (whole + b"\0", whole[:-1], b"", whole + whole):
        with pytest.raises(WireError, match="no usable header"):
            wire.read_header({wire.KEY: content}, wire.UploadHeader)


def test_a_header_of_an_upload_of_minilm_is_short():
    report = dict.fromkeys(("loss", "steps", "tokens", "padded_tokens", "seconds"), 1 / 3)
    digests = [np.random.default_rng(seed).bytes(8).hex() for seed in range(3)]
    header = wire.UploadHeader(
        "3",
        12,
        digests[0],
        vector_digest(VECTOR),
        80,
        60,
        "ffffff",
        "dense",
        (),
        (),
        *digests[1:3],
        report,
    )
    assert len(wire.write_header(header)[wire.KEY]) <= 150


@pytest.mark.case(11)
@BOTH
def test_header_vectors_and_layout_belong_together(header):
    wire.check_layout(header, LAYOUT)
    other = Layout((TensorSpec("a", (2, 3), "A"), TensorSpec("b", (4,), "B")))
    assert other.size == LAYOUT.size
    with pytest.raises(WireError, match=rf"{LAYOUT.digest}, expected {other.digest} \(2 tensors, 10 values"):
        wire.check_layout(header, other)
    wire.check_digest(header, VECTOR)
    wire.check_digest(header, VECTOR[:4], VECTOR[4:])
    for changed in (np.nextafter(VECTOR, np.float32(9)), VECTOR[::-1], VECTOR[:-1], -VECTOR):
        with pytest.raises(WireError, match="digest"):
            wire.check_digest(header, changed)
    with pytest.raises(WireError, match="digest"):
        wire.check_digest(header, VECTOR, VECTOR)


@pytest.mark.case(11)
@pytest.mark.parametrize("mask", ["4", "-1", "0x1", " 1", "01", "1_0", "٣", "g", "", "f" * 10**5, "A"])
def test_a_mask_that_is_none_of_the_layout_is_refused(mask):
    assert wire.names_of("2", LAYOUT) == {"a"}
    with pytest.raises(WireError, match="does not name tensors of this layout of 2") as caught:
        wire.names_of(mask, LAYOUT)
    assert len(str(caught.value)) < 200


@pytest.mark.case(5)
@pytest.mark.parametrize("round_", [2, 4])
def test_an_upload_of_another_round_is_refused(round_):
    wire.check_upload(UPLOAD, 3, TRAINED)
    with pytest.raises(WireError, match=f"answers round 3, this is round {round_}"):
        wire.check_upload(UPLOAD, round_, TRAINED)


@pytest.mark.case(12)
@pytest.mark.parametrize("examples", [0, -1, wire.MAX_EXAMPLES + 1])
def test_an_unbelievable_number_of_examples_is_refused(examples):
    with pytest.raises(WireError, match=str(examples)):
        wire.check_upload(replace(UPLOAD, examples=examples), 3, TRAINED)


@pytest.mark.parametrize("examples", [1, wire.MAX_EXAMPLES])
def test_the_bounds_of_examples_are_believed(examples):
    wire.check_upload(replace(UPLOAD, examples=examples), 3, TRAINED)


def test_numbers_that_a_report_lacks_are_named():
    wire.check_upload(UPLOAD, 3, TRAINED)
    with pytest.raises(WireError, match=r"lacks \['loss'\]"):
        wire.check_upload(replace(UPLOAD, report={"steps": 5}), 3, TRAINED)


def test_metrics_are_needed_of_a_client_that_was_measured_and_of_no_other():
    wire.check_upload(replace(UPLOAD, report={}), 3, EVALUATED)
    with pytest.raises(WireError, match=r"lacks \['accuracy'\]"):
        wire.check_upload(replace(UPLOAD, measured=7, report={"loss": 1.0}), 3, EVALUATED)
    with pytest.raises(WireError, match=r"reports \['majority'\], measured on no example"):
        wire.check_upload(replace(UPLOAD, report={"majority": 0.5}), 3, EVALUATED)
    with pytest.raises(WireError, match=r"reports \['accuracy_before'\], measured on no example"):
        wire.check_upload(replace(UPLOAD, report={"loss": 1.0, "accuracy_before": 0.5}), 3, TRAINED)


def test_a_number_that_was_not_asked_for_in_a_round_is_refused():
    trained = replace(UPLOAD, measured=7, report={"loss": 1.0, "accuracy_before": 0.5})
    evaluated = replace(UPLOAD, measured=7, report={"loss": 1.0, "accuracy": 0.5, "local_only": 0.5})
    wire.check_upload(trained, 3, TRAINED)
    wire.check_upload(evaluated, 3, EVALUATED)
    with pytest.raises(WireError, match="reports 'accuracy_before', expected one of: "):
        wire.check_upload(trained, 3, of_training(MEASURES, False))
    with pytest.raises(WireError, match="reports 'local_only', expected one of: "):
        wire.check_upload(evaluated, 3, of_evaluation(MEASURES, False))


@pytest.mark.parametrize("name", ["", "phase", "client", "\ud800", "x" * 10**5, "local_only", "=1+1"])
def test_a_number_that_no_client_of_ours_reports_is_refused_in_few_words(name):
    with pytest.raises(WireError, match="expected one of: loss, padded_tokens, ") as caught:
        wire.check_upload(replace(UPLOAD, report={**UPLOAD.report, name: 0.5}), 3, TRAINED)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("numbers", "name", "value"), [
    (TRAINED, "loss", -1e-9), (TRAINED, "loss", 1e151), (TRAINED, "steps", -1), (TRAINED, "seconds", 1e10),
    (TRAINED, "accuracy_before", 1.01), (EVALUATED, "loss", -0.5), (EVALUATED, "accuracy", 1.5),
    (EVALUATED, "matthews", -1.1), (EVALUATED, "perplexity", 0.5), (EVALUATED, "local_only", -1),
    (EVALUATED, "macro_f1", 2),
])  # fmt: skip
def test_a_number_out_of_its_range_is_refused_by_name(numbers, name, value):
    report = {"loss": 0.5, "accuracy": 0.5} if numbers is EVALUATED else {"loss": 0.5}
    wire.check_upload(replace(UPLOAD, measured=7, report=report), 3, numbers)
    with pytest.raises(WireError, match=f"reports '{name}' of .*, expected"):
        wire.check_upload(replace(UPLOAD, measured=7, report={**report, name: value}), 3, numbers)


def test_a_task_of_ones_own_declares_what_its_clients_may_report():
    report = {"loss": -3.5, "accuracy": 0.5, "bleu": 31.0}
    upload = replace(UPLOAD, measured=7, report=report)
    own = (Measure("accuracy", (0.0, 1.0)), Measure("loss", (-10.0, 10.0)), Measure("bleu", (0.0, 100.0)))
    wire.check_upload(upload, 3, of_evaluation(own, False))
    with pytest.raises(WireError, match=r"'loss' of -3\.5, expected 0 to"):
        wire.check_upload(upload, 3, EVALUATED)


def test_the_primary_measure_is_asked_for_and_its_references_are_in_its_range():
    own = (Measure("perplexity", (1.0, 1e6), higher_is_better=False),)
    trained, evaluated = of_training(own, True), of_evaluation(own, True)
    report = {"perplexity": 7.5, "global_perplexity": 9.5, "local_only": 8.5}
    wire.check_upload(replace(UPLOAD, measured=7, report=report), 3, evaluated)
    before = {"loss": 2.0, "perplexity_before": 7.0}
    wire.check_upload(replace(UPLOAD, measured=7, report=before), 3, trained)
    with pytest.raises(WireError, match=r"lacks \['perplexity'\]"):
        wire.check_upload(replace(UPLOAD, measured=7, report={"local_only": 8.5}), 3, evaluated)
    for name in ("local_only", "perplexity", "global_perplexity"):
        with pytest.raises(WireError, match=f"reports '{name}' of 0.5, expected 1 to 1e"):
            wire.check_upload(replace(UPLOAD, measured=7, report=report | {name: 0.5}), 3, evaluated)
    for name in ("accuracy", "loss", "global_accuracy"):
        with pytest.raises(WireError, match=f"reports '{name}', expected one of"):
            wire.check_upload(replace(UPLOAD, measured=7, report=report | {name: 0.5}), 3, evaluated)


TEXTS = [
    *((UPLOAD, name) for name in ("private_before", "private_after", "layout", "digest", "shared", "codec")),
    *((BROADCAST, name) for name in ("layout", "shared", "carried", "joining", "codec", "run", "resumed")),
]


@pytest.mark.parametrize(("header", "name"), TEXTS, ids=lambda what: what if isinstance(what, str) else "")
@pytest.mark.parametrize(
    "text", ["\ud800", "<script>\0", "=cmd|\n", "\x1b[2J", "\u202e", "0" * 16 + "\n", "é" * 16, "\t" * 32]
)
def test_a_text_holds_what_we_write_and_nothing_else(header, name, text):
    with pytest.raises(WireError, match=f"header field '{name}' is .*: expected to match"):
        read(asdict(header) | {name: text}, type(header))


def test_a_key_that_stands_twice_and_a_round_beyond_any_run_are_refused():
    text = json.dumps(asdict(UPLOAD))
    for twice in (text.replace("{", '{"round": 3, ', 1), text.replace('"loss"', '"loss": 0.1, "loss"')):
        with pytest.raises(WireError, match="twice"):
            wire.read_header(entries_of(twice, wire.UploadHeader), wire.UploadHeader)
    with pytest.raises(WireError, match="'round' must be 0 to"):
        read(asdict(UPLOAD) | {"round": 10**4000}, wire.UploadHeader)


@pytest.mark.parametrize("number", [5, 10**150, -0.0, 0])
def test_numbers_of_a_report_are_floats_however_they_are_written(number):
    header = wire.read_header(wire.write_header(replace(UPLOAD, report={"loss": number})), wire.UploadHeader)
    assert type(header.report["loss"]) is float
    assert header.report["loss"] == float(number)


def test_a_loss_of_minus_zero_is_zero():
    header = wire.read_header(wire.write_header(replace(UPLOAD, report={"loss": -0.0})), wire.UploadHeader)
    assert math.copysign(1, header.report["loss"]) == 1


def test_a_clients_own_error_is_passed_on():
    with pytest.raises(WireError, match=r"^TrainingError: the loss became nan$"):
        wire.check_upload(replace(UPLOAD, error="TrainingError: the loss became nan", round=9), 3, TRAINED)
