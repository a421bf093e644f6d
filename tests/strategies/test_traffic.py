"""Bytes are those of the record that Flower really sends, in both directions."""

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    RecordDict,
    Status,
    ndarrays_to_parameters,
)
from flwr.common.serde import message_to_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat
from hypothesis import given
from hypothesis import strategies as st

from fedsa_lora.exchange.wire import KEY
from strategies.round import traffic
from strategies.round.traffic import message_bytes

VECTOR = np.random.default_rng(0).normal(size=1000).astype(np.float32)
NOTES = {"fedsa": '{"round":1}', "loss": 0.5, "steps": 5, "raw": b"xyz", "done": True}
TO_RECORD = {FitIns: compat.fitins_to_recorddict, EvaluateIns: compat.evaluateins_to_recorddict}


def parameters(vector: np.ndarray = VECTOR):
    return ndarrays_to_parameters([vector])


def messages() -> list:
    ok = Status(Code.OK, "Success")
    return [
        FitIns(parameters(), dict(NOTES)),
        FitRes(ok, parameters(), 60, dict(NOTES)),
        EvaluateIns(parameters(), dict(NOTES)),
        EvaluateRes(ok, 0.25, 60, dict(NOTES)),
    ]


def sent(message) -> bytes:
    """The record as Flower serialises it, made from a copy."""
    kind = type(message).__name__.lower()
    convert = getattr(compat, f"{kind}_to_recorddict")
    record = convert(message) if kind == "evaluateres" else convert(message, keep_input=True)
    return recorddict_to_proto(record).SerializeToString()


@pytest.mark.parametrize("message", messages(), ids=lambda message: type(message).__name__)
def test_the_bytes_of_a_message_are_the_length_of_its_serialised_record(message):
    assert message_bytes(message) == len(sent(message)) > 0


@pytest.mark.parametrize("message", messages(), ids=lambda message: type(message).__name__)
def test_counting_leaves_the_message_as_it_was(message):
    before = sent(message)
    assert message_bytes(message) == message_bytes(message)
    assert sent(message) == before


@pytest.mark.parametrize("kind", [FitIns, EvaluateIns])
def test_every_value_more_is_four_bytes_more(kind):
    small, large = (message_bytes(kind(parameters(np.ones(n, np.float32)), {})) for n in (10_000, 11_000))
    assert large - small == 4 * 1000


class Client(NumPyClient):
    def fit(self, parameters, config):
        return [VECTOR + 1], 60, dict(NOTES)

    def evaluate(self, parameters, config):
        return 0.25, 60, dict(NOTES)


@pytest.mark.parametrize(("kind", "reading"), [("train", "fitres"), ("evaluate", "evaluateres")])
def test_the_bytes_counted_on_the_server_are_those_that_a_client_app_sent(kind, reading):
    ins = FitIns if kind == "train" else EvaluateIns
    content = TO_RECORD[ins](ins(parameters(), {}), keep_input=True)
    app = ClientApp(client_fn=lambda context: Client().to_client())
    reply = app(Message(content, dst_node_id=1, message_type=kind), Context(1, 1, {}, RecordDict(), {}))
    on_the_wire = recorddict_to_proto(reply.content).SerializeToString()
    assert on_the_wire in message_to_proto(reply).SerializeToString()
    read = getattr(compat, f"recorddict_to_{reading}")
    received = read(reply.content, keep_input=True) if kind == "train" else read(reply.content)
    assert message_bytes(received) == len(on_the_wire)


SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.text(max_size=300),
    st.binary(max_size=300),
)
FOREIGN = st.dictionaries(st.text(max_size=8), SCALARS | st.lists(st.integers(0, 9), max_size=3), max_size=3)
LOSSES = st.floats() | st.integers(-(2**62), 2**62) | st.lists(st.floats(), max_size=3)
OURS = st.builds(lambda length: {KEY: bytes(length)}, st.integers(0, 300))


@given(
    bits=st.integers(0, 40),
    losses=st.tuples(LOSSES, LOSSES),
    metrics=FOREIGN | OURS,
    sizes=st.lists(st.integers(0, 40_000), max_size=2) | st.builds(lambda n: [n], st.integers(0, 40_000)),
    said=st.text(max_size=200),
)
def test_an_answer_has_the_size_of_its_record_and_another_of_the_same_lengths_too(
    bits, losses, metrics, sizes, said
):
    status = Status(Code.OK, said)
    for fill, examples, loss in zip((b"\0", b"\xff"), (1 << bits, (2 << bits) - 1), losses, strict=True):
        filled = {k: fill * len(v) if isinstance(v, bytes) else v for k, v in metrics.items()}
        sent = Parameters([fill * size for size in sizes], "numpy.ndarray")
        fit = FitRes(status, sent, examples, filled)
        evaluated = EvaluateRes(status, loss, examples, filled)
        records = compat.fitres_to_recorddict(fit, True), compat.evaluateres_to_recorddict(evaluated)
        for message, record in zip((fit, evaluated), records, strict=True):
            assert message_bytes(message) == recorddict_to_proto(record).ByteSize()


def test_only_lengths_of_answers_such_as_ours_are_kept():
    """What others send is not held, however much of it there is."""
    before = len(traffic._sizes)
    for number in range(100):
        message_bytes(FitRes(Status(Code.OK, ""), parameters(), 60, {f"{number}": 1}))
        message_bytes(EvaluateRes(Status(Code.OK, ""), 0.5, 60, {KEY: b"", f"{number}": 1}))
        message_bytes(EvaluateRes(Status(Code.OK, ""), 0.5, number + 0.5, {KEY: b""}))
    assert len(traffic._sizes) == before
