"""FedSA by itself: what it admits, what it does with it, and in which order."""

import json
import re

import numpy as np
import pytest
from flwr.common import EvaluateRes, ndarrays_to_parameters
from flwr.server.strategy import FedAvg, FedProx, Krum
from remarks import failures_of
from server_side import EVERYONE, LAYOUT, OK, Node, Server, some_updates

from fedsa_lora.errors import RunError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.codec import Dense
from fedsa_lora.exchange.selection import Threshold, TopK
from fedsa_lora.exchange.split import RoleSplit
from fedsa_lora.exchange.vector import read_array, vector_digest
from strategies import Attendance, Evaluation
from strategies.round.totals import EXAMPLES
from strategies.round.traffic import message_bytes

CLIENTS = ["0", "1", "2"]


def answers(server: Server, sent, examples=(10, 10, 10), **changes):
    return {c: server.upload(c, u, w, **changes) for c, u, w in zip(CLIENTS, sent, examples, strict=True)}


def test_the_new_value_is_the_weighted_mean_by_hand():
    server, sent, weights = Server(), some_updates(), [5, 20, 75]
    server.ask()
    shared = server.take(answers(server, sent, weights))
    expected = np.arange(LAYOUT.size) + sum(w / 100 * u for u, w in zip(sent, weights, strict=True))
    np.testing.assert_allclose(shared, expected, rtol=0, atol=1e-5)
    assert shared.dtype == np.float32


def test_with_uniform_weights_it_is_the_plain_mean_whatever_clients_hold():
    server, sent = Server(uniform=True), some_updates()
    server.ask()
    shared = server.take(answers(server, sent, [5, 20, 75]))
    np.testing.assert_allclose(shared, np.arange(LAYOUT.size) + sum(sent) / 3, rtol=0, atol=1e-5)
    assert [row["examples"] for row in server.notes.clients] == [5, 20, 75]


@pytest.mark.parametrize("order", [["0", "1", "2"], ["2", "1", "0"], ["1", "2", "0"]])
def test_the_order_of_arrival_does_not_change_a_bit(order):
    sent, reference, server = some_updates(), Server(), Server()
    for each in (reference, server):
        each.ask()
    expected = reference.take(answers(reference, sent))
    assert np.array_equal(server.take(answers(server, sent), order), expected)
    assert [row["client"] for row in server.notes.clients] == CLIENTS


def test_a_broadcast_holds_the_shared_vector_and_nothing_else():
    server = Server()
    sent = server.ask()
    assert list(sent) == CLIENTS
    for client, ins in sent.items():
        vector = read_array(ins.parameters.tensors, np.float32, 4 * LAYOUT.size)
        wire.check_digest(server.asked[client], vector)
        wire.check_layout(server.asked[client], LAYOUT)
        assert np.array_equal(vector, server.strategy.common)
        assert set(ins.config) == {wire.KEY}
        assert wire.names_of(server.asked[client].shared, LAYOUT) == set(LAYOUT.names)


def test_the_total_of_a_mean_is_told_to_the_clients_in_it_where_it_is_to_be_told():
    for tells in (True, False):
        server, told = Server(tell_total=tells, min_results=0.5, every=1), 60 if tells else 0
        server.ask()
        assert {header.total for header in server.asked.values()} == {0}
        server.take({c: server.upload(c, np.ones(LAYOUT.size), n) for c, n in (("0", 20), ("2", 40))})
        for ask in (server.ask_to_evaluate, lambda server=server: server.ask(2)):
            ask()
            assert {c: header.total for c, header in server.asked.items()} == {"0": told, "1": 0, "2": told}
        memory = server.notes.checkpoints[-1][2]
        assert memory == ({EXAMPLES + "0": 20, EXAMPLES + "2": 40} if tells else {})


REJECTED = {
    "of another round": ({"round": 2}, "answers round 2"),
    "under another name": ({"client": "1"}, "answers as client '1'"),
    "without examples": ({"examples": 0}, "claims 0 examples"),
    "with a digest of other values": ({"digest": "0" * 32}, "digest does not match"),
    "of another layout": ({"layout": "0" * 16}, "tensors of layout 0000"),
    "of fewer tensors than asked": ({"shared": "1"}, r"difference is \['x.lora_A.weight'\]"),
    "of tensors that there are not": ({"shared": "7"}, "does not name tensors"),
    "of another codec": ({"codec": "dense fp16"}, "coded by 'dense fp16', expected 'dense fp32'"),
    "with values left out": ({"payload": np.ones(9, np.float32)}, r"expected float32 \(10,\)"),
    "with values added": ({"payload": np.ones(11, np.float32)}, "contains 44 bytes"),
    "of another dtype": ({"payload": np.ones(10, np.float64)}, "expected"),
    "with class counts nobody asked for": ({"counts": (5, 5)}, "2 class counts, expected 0"),
    "with an error of its own": ({"error": "TrainingError: the loss became nan"}, "TrainingError: the loss"),
}


@pytest.mark.case(5)
@pytest.mark.case(9)
@pytest.mark.case(10)
@pytest.mark.case(11)
@pytest.mark.case(12)
@pytest.mark.case(13)
@pytest.mark.parametrize(("changes", "reason"), REJECTED.values(), ids=REJECTED)
def test_what_does_not_hold_is_rejected_named_and_the_others_go_on(changes, reason):
    server, sent = Server(min_results=0.5, every=1), some_updates()
    server.ask()
    results = answers(server, sent) | {"0": server.upload("0", sent[0], **changes)}
    shared = server.take(results)
    np.testing.assert_allclose(shared, server.start + (sent[1] + sent[2]) / 2, rtol=0, atol=1e-5)
    assert [row["client"] for row in server.notes.clients] == ["1", "2"]
    server.ask_to_evaluate()
    server.strategy.aggregate_evaluate(1, [(n, evaluated(c, 1)) for c, n in server.nodes.items()], [])
    (row,) = server.notes.rounds
    (failure,) = failures_of(row)
    assert row["fit_failures"] == 1
    assert re.search("client 0: .*" + reason, failure)


@pytest.mark.case(7)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_rejected(value):
    server, sent = Server(min_results=0.5), some_updates()
    server.ask()
    bad = sent[1].copy()
    bad[3] = value
    shared = server.take(answers(server, sent) | {"1": server.upload("1", bad, payload=bad)})
    assert [row["client"] for row in server.notes.clients] == ["0", "2"]
    np.testing.assert_allclose(shared, server.start + (sent[0] + sent[2]) / 2, rtol=0, atol=1e-5)


@pytest.mark.case(14)
@pytest.mark.parametrize("codec", [TopK(ratio=0.3), TopK(ratio=0.3, values="int8"), Threshold(threshold=0.9)])
@pytest.mark.parametrize("bit", [0, 7, -1, -9])
def test_a_payload_that_was_altered_is_rejected_whatever_bit_it_is(codec, bit):
    server, sent = Server(min_results=0.5, codec=codec), some_updates()
    server.ask()
    honest = codec.encode(sent[0], np.random.default_rng(0))
    altered = honest.copy()
    altered[bit // 8] ^= 1 << bit % 8
    results = answers(server, sent) | {
        "0": server.upload("0", sent[0], payload=altered, digest=vector_digest(honest))
    }
    server.take(results)
    assert [row["client"] for row in server.notes.clients] == ["1", "2"]


@pytest.mark.case(16)
def test_positions_beyond_the_vector_are_rejected_though_their_digest_fits():
    """Gaps of zeros and ones can only ascend: no payload names a position twice."""
    codec = TopK(ratio=0.2)
    server, sent = Server(min_results=0.5, codec=codec), some_updates()
    server.ask()
    values = np.ones(2, np.float32).view(np.uint8)
    beyond = np.concatenate([values, np.array([0, 0b00000000, 0b00000011], np.uint8)])
    server.take(answers(server, sent) | {"0": server.upload("0", sent[0], payload=beyond)})
    assert [row["client"] for row in server.notes.clients] == ["1", "2"]


@pytest.mark.case(6)
def test_a_second_answer_of_a_client_counts_once():
    server, once, sent = Server(), Server(), some_updates()
    for each in (server, once):
        each.ask()
    expected = once.take(answers(once, sent))
    assert np.array_equal(server.take(answers(server, sent), [*CLIENTS, "0"]), expected)
    assert len(server.notes.clients) == 3


def test_the_reasons_are_in_the_order_of_clients_whatever_arrived_first():
    server, sent = Server(min_results=0.3), some_updates()
    server.ask()
    results = answers(server, sent, round=2) | {"1": server.upload("1", sent[1])}
    server.take(results, ["2", "1", "0"])
    (row,) = server.notes.rounds
    assert [line[:8] for line in failures_of(row)] == ["client 0", "client 2"]


def test_too_few_results_end_the_run_with_the_reasons_and_leave_the_vector_as_it_was():
    server, sent = Server(min_results=0.9), some_updates()
    server.ask()
    good, bad = server.upload("0", sent[0]), server.upload("1", sent[1], error="StoreError: gone")
    results = [(server.nodes["0"], good), (server.nodes["1"], bad)]
    with pytest.raises(RunError, match=r"2 of 3 clients failed[^\n]*\n[^\n]*\nclient 1: StoreError: gone$"):
        server.strategy.aggregate_fit(1, results, [ValueError("node lost")])
    assert np.array_equal(server.strategy.common, server.start)
    assert server.notes.checkpoints == []


class Broken(FedAvg):
    """An inner strategy whose arithmetic went wrong."""

    def aggregate_fit(self, server_round, results, failures):
        return ndarrays_to_parameters([np.full(LAYOUT.size, np.nan)]), {}


def test_an_aggregate_that_is_not_finite_ends_the_run_and_names_the_strategy():
    server = Server(inner=Broken(**EVERYONE))
    server.ask()
    with pytest.raises(RunError, match=r"Broken made an unusable aggregate: .* NaN"):
        server.take(answers(server, some_updates()))
    assert server.notes.checkpoints == []


def evaluated(client: str, round_: int, accuracy: float = 0.5, measured: int = 10) -> EvaluateRes:
    header = wire.UploadHeader(
        client=client, round=round_, layout=LAYOUT.digest, digest="", examples=60, measured=measured,
        report={"accuracy": accuracy, "loss": 1.0, "majority": 0.1} if measured else {},
    )  # fmt: skip
    return EvaluateRes(OK, 1.0, measured, wire.write_header(header))


@pytest.mark.parametrize("codec", [Dense(), TopK(ratio=0.3)], ids=lambda codec: codec.name)
def test_a_round_records_mean_weighted_and_worst_and_every_byte_both_ways(codec):
    server = Server(every=1, rounds=1, codec=codec, inner=FedProx(proximal_mu=0.1, **EVERYONE))
    asked = list(server.ask().values())
    results = answers(server, some_updates())
    server.take(results)
    asked += server.ask_to_evaluate().values()
    accuracies = zip(CLIENTS, (0.2, 0.6, 1.0), (10, 10, 80), strict=True)
    replies = [(server.nodes[c], evaluated(c, 1, a, e)) for c, a, e in accuracies]
    server.strategy.aggregate_evaluate(1, replies, [])
    (row,) = server.notes.rounds
    assert row["accuracy"] == pytest.approx(0.6)
    assert row["accuracy_weighted"] == pytest.approx(0.88)
    assert row["accuracy_worst"] == 0.2
    assert row["accuracy_before"] == 0.5
    up = [*results.values(), *(reply for _, reply in replies)]
    assert row["bytes_up"] == sum(map(message_bytes, up))
    assert row["bytes_down"] == sum(map(message_bytes, asked))
    for key, messages in {"bytes_up": up, "bytes_down": asked}.items():
        by_client = sorted(noted[key] for noted in server.notes.clients)
        assert by_client == sorted(map(message_bytes, messages)), key
    assert json.dumps(row)


def evaluation_of(accuracies: dict[str, tuple[float, int]]) -> tuple[Server, float | None, dict]:
    """A round of three clients that answer so to an evaluation: accuracy, and of how many examples."""
    server = Server(every=1)
    server.ask()
    server.take(answers(server, some_updates()))
    server.ask_to_evaluate()
    replies = [(server.nodes[c], evaluated(c, 1, a, n)) for c, (a, n) in accuracies.items()]
    return server, *server.strategy.aggregate_evaluate(1, replies, [])


def test_a_client_without_examples_to_be_measured_on_is_left_out_of_every_mean_and_is_no_failure():
    server, loss, metrics = evaluation_of({"0": (0.2, 10), "1": (0.0, 0), "2": (0.6, 30)})
    (row,) = server.notes.rounds
    assert (row["accuracy"], row["accuracy_weighted"], row["accuracy_worst"]) == pytest.approx(
        (0.4, 0.5, 0.2)
    )
    assert (row["measured_clients"], row["remarks"], row["evaluated"]) == (2, [], True)
    assert (loss, metrics) == (1.0, {"accuracy": pytest.approx(0.4)})
    told = {r["client"]: r for r in server.notes.clients if r["phase"] == "evaluate"}
    assert {client: row["measured"] for client, row in told.items()} == {"0": 10, "1": 0, "2": 30}
    assert "accuracy" not in told["1"]


def test_a_run_of_which_nobody_can_be_measured_ends_without_a_measure():
    server, loss, metrics = evaluation_of(dict.fromkeys(CLIENTS, (0.0, 0)))
    (row,) = server.notes.rounds
    assert (row["accuracy"], row["measured_clients"], row["evaluated"]) == (None, 0, False)
    assert (loss, metrics, row["remarks"]) == (None, {}, [])


@pytest.mark.parametrize(("every", "due"), [(0, [2]), (1, [1, 2]), (2, [2]), (5, [2])])
def test_all_clients_are_evaluated_when_due_and_always_in_the_last_round(every, due):
    evaluation = Evaluation(rounds=2, every=every)
    assert [round_ for round_ in (1, 2) if evaluation.due(round_)] == due


@pytest.mark.parametrize(
    ("words", "rounds"), [({}, [4]), ({"before_each": True}, [2, 4]), ({"before": False}, [])]
)
def test_before_aggregation_is_measured_at_the_end_and_in_each_evaluated_round_on_request(words, rounds):
    evaluation = Evaluation(rounds=4, every=2, **words)
    assert [round_ for round_ in range(1, 5) if evaluation.compares_before(round_)] == rounds


def test_a_node_that_comes_during_a_round_is_evaluated_in_it():
    server = Server(every=1)
    server.ask()
    server.take(answers(server, some_updates()))
    server.manager.register(Node("1", "late"))
    assert list(server.ask_to_evaluate()) == [*CLIENTS, "late"]


HEADED = Layout((*LAYOUT.specs, TensorSpec("classifier.weight", (2, 2), "head")))


@pytest.mark.parametrize("counts", [(), (10,), (5, 4, 1), (10**9, 10**9)])
def test_class_counts_that_are_not_one_for_each_class_or_not_of_the_examples_are_rejected(counts):
    """One client that tells none would otherwise end the weighting by counts for all."""
    split = RoleSplit(A="shared", B="local", head="shared")
    server = Server(HEADED, split=split, classes=2, min_results=0.5, every=1)
    sent = some_updates(size=HEADED.size)
    server.ask()
    results = answers(server, sent, counts=(9, 1))
    server.take(results | {"0": server.upload("0", sent[0], counts=counts)})
    assert [row["client"] for row in server.notes.clients] == ["1", "2"]


@pytest.mark.parametrize("answering", [4, 5])
def test_a_round_with_fewer_results_than_krum_holds_with_is_skipped(answering):
    krum = Krum(num_malicious_clients=1, num_clients_to_keep=0, **EVERYONE)
    server = Server(clients=6, inner=krum, min_results=0.1, attendance=Attendance(max_skipped=2))
    server.ask()
    sent = dict(zip(map(str, range(answering)), some_updates(6), strict=False))
    shared = server.take({client: server.upload(client, update) for client, update in sent.items()})
    assert np.array_equal(shared, server.start) == (answering < 5)
    assert server.notes.rounds[0]["skipped"] == (answering < 5)
    if answering < 5:
        server.ask(2)
        with pytest.raises(RunError, match=r"6 of 6 clients failed .* Krum needs 5 results or more"):
            server.take({}, round_=2)


def test_however_often_a_run_was_resumed_its_messages_are_no_longer():
    sizes = [
        {client: message_bytes(ins) for client, ins in Server(run="r", resumed=resumed).ask(1).items()}
        for resumed in (0, 1, 12, 345)
    ]
    assert sizes.count(sizes[0]) == len(sizes)
