"""The door of the strategy itself: whatever bytes arrive, nothing breaks, and nothing gets in unproven."""

import io
import json
import random
import tracemalloc
import zipfile
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest
from flwr.common import Code, FitRes, Parameters, Status
from remarks import failures_of, remarks
from server_side import LAYOUT, Server, some_updates

from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.codec import Dense
from fedsa_lora.exchange.positions import encode_positions
from fedsa_lora.exchange.selection import RandomK, Threshold, TopK
from fedsa_lora.exchange.vector import vector_digest
from strategies import Bounds

CODECS = [
    Dense(), Dense(values="bf16"), Dense(values="int4"), TopK(ratio=0.3), TopK(ratio=0.3, values="int8"),
    RandomK(ratio=0.3), Threshold(threshold=0.5),
]  # fmt: skip
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
HOSTILE = 25  # who answer in one round with what was altered


def server_with(clients: int = 3, codec=None, **bounds) -> tuple[Server, dict[str, FitRes]]:
    """A server that asked its clients, and what they would answer."""
    server = Server(clients=clients, codec=codec, min_results=1e-9, bounds=Bounds(**bounds))
    server.ask()
    sent = some_updates(clients)
    return server, {str(i): server.upload(str(i), u) for i, u in enumerate(sent)}


def tensors(result: FitRes, *contents: bytes) -> FitRes:
    """The answer with other bytes in the place of its values."""
    return replace(result, parameters=Parameters(list(contents), "numpy.ndarray"))


def said(result: FitRes, **fields) -> FitRes:
    """The answer with other entries in its header, of any type that JSON can write."""
    content = json.loads(wire.inflated(result.metrics[wire.KEY])) | fields
    return replace(result, metrics={wire.KEY: wire.deflated(json.dumps(content))})


def rejected(server: Server, answers: dict[str, FitRes]) -> dict[str, str]:
    """Who was rejected in the round, and why."""
    server.take(answers)
    (row,) = server.notes.rounds
    return {remark.client: remark.reason for remark in remarks(row, "rejected")}


def altered(content: bytes, rng: random.Random) -> bytes:
    """A few bytes set, cut, inserted or doubled; one in four is noise altogether."""
    if rng.random() < 0.25:
        return rng.randbytes(rng.randrange(0, 300))
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        other = (rng.randbytes(1), b"", rng.randbytes(rng.randint(1, 9)) + changed[at : at + 1])
        changed[at : at + rng.choice((1, 1, 9))] = rng.choice(other)
    return bytes(changed)


def attack(codec, rounds: int, alter) -> list[dict]:
    """Rounds in which all but the first client answer what ``alter`` makes of an honest answer; the rows."""
    server = Server(clients=HOSTILE + 1, codec=codec, min_results=1e-9, rounds=10**6)
    for round_ in range(1, rounds + 1):
        server.ask(round_)
        update = some_updates(1, seed=round_)[0]
        answers = {client: server.upload(client, update) for client in server.nodes}
        server.take({c: answers[c] if c == "0" else alter(answers[c]) for c in answers}, round_=round_)
        assert np.isfinite(server.strategy.common).all()
    return server.notes.rounds


@pytest.mark.case(14)
@pytest.mark.parametrize("codec", CODECS[:4], ids=lambda codec: codec.name)
def test_of_ten_thousand_altered_payloads_none_is_accepted_and_none_does_harm(codec, trials):
    """A tenth of them in make test, all in make test-faults."""
    rng, rounds = random.Random(14), trials(100)

    def alter(result: FitRes) -> FitRes:
        original = result.parameters.tensors[0]
        while (content := altered(original, rng)) == original:
            pass
        return tensors(result, content)

    rows = attack(codec, rounds, alter)
    assert 100 * HOSTILE == 10_000 / 4, "for each of four codecs"
    assert sum(len(remarks(row, "rejected")) for row in rows) == rounds * HOSTILE
    assert {row["fit_clients"] for row in rows} == {1}


@pytest.mark.case(14)
@every_codec
def test_noise_whose_digest_fits_is_refused_or_is_a_finite_update(codec):
    """Who sends noise can also compute its digest."""
    rng = random.Random(15)

    def alter(result: FitRes) -> FitRes:
        size = rng.randrange(codec.max_bytes(LAYOUT.size) + 3)
        noise = np.frombuffer(rng.randbytes(size // 4 * 4 if codec.lossless else size), codec.dtype)
        stream = io.BytesIO()
        np.save(stream, noise)
        return said(tensors(result, stream.getvalue()), digest=vector_digest(noise))

    rows = attack(codec, 20, alter)
    assert sum(len(remarks(row, "rejected")) for row in rows) > 20


@pytest.mark.case(14)
def test_altered_headers_do_no_harm():
    rng = random.Random(16)

    def alter(result: FitRes) -> FitRes:
        text = altered(wire.inflated(result.metrics[wire.KEY]).encode(), rng).decode("latin1")
        return replace(result, metrics={wire.KEY: wire.deflated(text)})

    rows = attack(Dense(), 40, alter)
    assert sum(len(remarks(row, "rejected")) for row in rows) > 500
    assert json.dumps(rows, allow_nan=False)


def npy(shape: str, descr: str = "<f4", values: bytes = b"") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + values


def zipped(size: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", bytes(size))
    return stream.getvalue()


ZEROS = zlib.compress(bytes(150_000_000))
LARGE = {
    "10^12 elements": npy("(1000000000000,)"),
    "10^12 elements with the right bytes": npy("(1000000000000,)", values=bytes(40)),
    "none of 10^9": npy("(0, 1000000000)"),
    "10^9 of none": npy("(1000000000, 0)"),
    "10^12 bytes an element": npy("(10,)", "|S1000000000000"),
    "a zip bomb": zipped(150_000_000),
    "a zip bomb as values": npy(f"({len(ZEROS)},)", "|u1", ZEROS),
    "a compressed stream": ZEROS,
}


@pytest.mark.case(15)
@every_codec
def test_what_announces_or_unpacks_to_more_than_there_is_takes_no_memory(codec):
    server, answers = server_with(len(LARGE) + 1, codec)
    bombs = {str(i): tensors(answers[str(i)], content) for i, content in enumerate(LARGE.values(), 1)}
    tracemalloc.start()
    try:
        refused = rejected(server, answers | bombs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sorted(refused) == sorted(bombs)
    assert peak < 10_000_000


@pytest.mark.case(15)
@pytest.mark.parametrize(
    "fields",
    [
        {"counts": [0] * 10**6},
        {"report": {"loss": 1.0} | {f"n{i}": 1 for i in range(10**5)}},
        {"shared": "f" * 10**6},
        {"client": "0" * 10**6},
        {"extra": [[[[]] * 100] * 100] * 100},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_header_beyond_its_size_is_not_read(fields):
    server, answers = server_with()
    refused = rejected(server, answers | {"1": said(answers["1"], **fields)})
    assert refused == {"1": "no usable header under 'fedsa': not sent by this app, or modified in transit"}


@pytest.mark.case(7)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "codec", [Dense(values="fp16"), Dense(values="bf16"), TopK(ratio=0.3)], ids=lambda codec: codec.name
)
def test_a_value_that_is_not_finite_is_named_in_every_format_and_the_others_are_aggregated(codec, bad):
    server, answers = server_with(codec=codec)
    kept, _ = server_with(codec=codec)
    kept.take({c: answer for c, answer in answers.items() if c != "1"})
    payload = codec.encode(some_updates()[1], np.random.default_rng(0)).copy()
    width = codec.numbers.bytes_of(1)
    words = {"fp16": np.float16(bad).view(np.uint16), "bf16": np.float32(bad).view(np.uint32) >> 16}
    value = words.get(codec.values, np.float32(bad))
    payload[:width] = np.frombuffer(value.tobytes()[:width], np.uint8)
    refused = rejected(server, answers | {"1": server.upload("1", None, payload=payload)})
    assert refused == {"1": "1 values are NaN or infinite"}
    assert np.array_equal(server.strategy.common, kept.strategy.common)


@pytest.mark.case(9)
@pytest.mark.case(10)
@pytest.mark.parametrize(
    "array",
    [
        np.ones(1, np.float32), np.ones((1, 10), np.float32), np.ones((10, 1), np.float32),
        np.float32(1), np.ones(10, np.float64), np.ones(10, np.complex64), np.ones(10, np.int32),
        np.array(["1"] * 10), np.array([b"1"] * 10), np.ones(10, ">f4"), np.ones(10, bool),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)  # fmt: skip
def test_an_array_of_another_shape_or_dtype_is_neither_cast_nor_broadcast(array):
    server, answers = server_with()
    stream = io.BytesIO()
    np.save(stream, array)
    wrong = said(tensors(answers["1"], stream.getvalue()), digest=vector_digest(np.asarray(array)))
    assert "expected" in rejected(server, answers | {"1": wrong})["1"]


@pytest.mark.case(11)
def test_more_arrays_than_one_none_and_tensors_in_another_order_are_rejected():
    server, answers = server_with(4)
    values = answers["1"].parameters.tensors[0]
    shapes = [spec.shape for spec in LAYOUT]
    turned = Layout(tuple(replace(s, shape=shape) for s, shape in zip(LAYOUT, shapes[::-1], strict=True)))
    assert turned.size == LAYOUT.size
    refused = rejected(
        server,
        answers
        | {
            "1": tensors(answers["1"], values, values),
            "2": tensors(answers["2"]),
            "3": said(answers["3"], layout=turned.digest),
        },
    )
    assert refused["1"] == "expected one array, got 2"
    assert refused["2"] == "expected one array, got 0"
    assert turned.digest in refused["3"]


@pytest.mark.case(13)
def test_a_b_that_nobody_asked_for_does_not_get_in():
    server, answers = server_with(4)
    b = TensorSpec("x.lora_B.weight", (3, 2), "B", "x")
    wider, payload = Layout((*LAYOUT.specs, b)), np.ones(LAYOUT.size + b.size, np.float32)
    sent = server.upload("1", None, payload=payload)
    refused = rejected(
        server,
        answers
        | {
            "1": sent,
            "2": said(sent, client="2", layout=wider.digest, shared=wider.mask(wider.names)),
            "3": said(sent, client="3", shared=wider.mask(wider.names)),
        },
    )
    assert "bytes" in refused["1"]
    assert wider.digest in refused["2"]
    assert "does not name tensors" in refused["3"]


@pytest.mark.case(12)
@pytest.mark.parametrize(
    "examples", [0, -1, wire.MAX_EXAMPLES + 1, 10**400, float("nan"), float("inf"), 1.5, True, "60", None, []]
)
def test_a_number_of_examples_that_is_none_is_rejected(examples):
    server, answers = server_with()
    refused = rejected(server, answers | {"1": said(answers["1"], examples=examples)})
    assert "examples" in refused["1"]
    assert [row["client"] for row in server.notes.clients] == ["0", "2"]


@pytest.mark.parametrize("measured", [-1, wire.MAX_EXAMPLES + 1, 1.5, True, "60", None])
def test_metrics_of_a_number_of_examples_that_is_none_are_rejected(measured):
    server, answers = server_with()
    refused = rejected(server, answers | {"1": said(answers["1"], measured=measured)})
    assert "measured" in refused["1"]
    assert [row["client"] for row in server.notes.clients] == ["0", "2"]


@pytest.mark.case(12)
@pytest.mark.parametrize(
    "report", [{"loss": 1e200}, {"loss": 1.0, "seconds": 1e200}, {"loss": 1.0, "steps": -1}]
)
def test_a_report_that_would_spoil_the_means_of_the_round_is_rejected(report):
    server, answers = server_with()
    refused = rejected(server, answers | {"1": said(answers["1"], report=report)})
    assert "reports" in refused["1"]
    assert json.dumps(server.notes.rounds, allow_nan=False)


@pytest.mark.case(16)
def test_a_position_out_of_range_or_named_twice_is_rejected():
    """A position is coded as its gap to the one before: no bytes name one twice, whatever they are."""
    codec = TopK(ratio=0.3)
    server, answers = server_with(codec=codec)
    values = np.ones(3, np.float32).view(np.uint8)
    beyond = np.concatenate([values, encode_positions(np.array([0, 1, 11]), 12)])
    none_but_zeros = np.concatenate([values, np.zeros(3, np.uint8)])
    refused = rejected(
        server,
        answers
        | {
            "1": server.upload("1", None, payload=beyond),
            "2": server.upload("2", None, payload=none_but_zeros),
        },
    )
    assert sorted(refused) == ["1", "2"]
    assert all("expected" in reason for reason in refused.values())


@pytest.mark.case(6)
def test_a_second_answer_with_other_values_changes_nothing_and_is_named():
    server, answers = server_with()
    once, _ = server_with()
    expected = once.take(answers)
    again = server.upload("1", np.full(LAYOUT.size, 9.0))
    arrived = [*((server.nodes[c], answer) for c, answer in answers.items()), (server.nodes["1"], again)]
    server.strategy.aggregate_fit(1, arrived, [])
    assert np.array_equal(server.strategy.common, expected)
    (remark,) = remarks(server.notes.rounds[0], "rejected")
    assert (remark.client, "for the second time" in remark.reason) == ("1", True)


def test_a_client_that_was_not_asked_is_rejected():
    server, answers = server_with()
    del server.strategy.round.asked["1"]
    assert rejected(server, answers) == {"1": "was not asked this round"}


def test_what_a_client_writes_is_one_short_line_in_log_and_rows():
    server, answers = server_with()
    evil = "\x1b[2J\nclient 2: innocent\r\u202e" * 1000
    server.take(
        answers
        | {
            "0": said(answers["0"], error=evil),
            "1": said(answers["1"], codec=evil),
        }
    )
    for line in failures_of(server.notes.rounds[0]):
        assert line.isprintable()
        assert len(line) < 600


@pytest.mark.parametrize("client", ["\ud800", "9" * 5000, "=1+1", "\x1b[2J", "<script>", "a\nb", ""])
def test_a_client_of_a_name_that_no_store_has_is_rejected_under_a_name_that_can_be_written(client):
    server, answers = server_with()
    server.strategy.roster._names[server.nodes["1"].cid] = client
    refused = rejected(server, answers | {"1": said(answers["1"], client=client)})
    (name,) = refused
    assert name.isprintable()
    assert len(name) < 100
    assert "client id" in refused[name]
    assert [row["client"] for row in server.notes.clients] == ["0", "2"]


@pytest.mark.parametrize("text", ["\ud800", "\x1b[2J", "a\nb", "\u202eb", "\u2066", "\r", "\0", "x" * 10**6])
def test_words_of_a_client_are_one_line_of_few_characters_wherever_they_come_from(text):
    server, answers = server_with()
    failure = server.nodes["2"], replace(answers["2"], status=Status(Code.FIT_NOT_IMPLEMENTED, text))
    server.strategy.aggregate_fit(1, [(server.nodes["0"], answers["0"])], [failure, RuntimeError(text)])
    (row,) = server.notes.rounds
    assert len(remarks(row)) == 2
    for remark in remarks(row):
        assert str(remark).isprintable()
        assert len(str(remark)) < 600
        assert str(remark).encode()


def test_the_server_takes_every_honest_answer_of_these_tests():
    for codec in CODECS:
        server, answers = server_with(codec=codec, median_factor=1e3, max_examples=10)
        assert rejected(server, answers) == {}
        assert asdict(server.asked["0"])["round"] == 1
