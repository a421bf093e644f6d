"""FedSA by itself: what it admits, what it does with it, and in which order."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flwr.common import Code, EvaluateRes, FitRes, GetPropertiesRes, Status, ndarrays_to_parameters
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg

from fedsa_lora.errors import RunError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from strategies import Cohort, Evaluation, FedSA

LAYOUT = Layout((TensorSpec("x.lora_A.weight", (2, 3), "A"), TensorSpec("y.lora_A.weight", (1, 4), "A")))
OK = Status(Code.OK, "")


class Node(ClientProxy):
    """A node that only knows its client's name."""

    def __init__(self, cid: str, client: str) -> None:
        super().__init__(cid)
        self.client = client

    def get_properties(self, ins, timeout, group_id):
        return GetPropertiesRes(OK, {"client": self.client})

    def get_parameters(self, ins, timeout, group_id):
        raise AssertionError("the server must not ask a client for parameters")

    fit = evaluate = reconnect = get_parameters


class Notes:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.clients, self.rounds, self.checkpoints = [], [], []

    def client(self, row):
        self.clients.append(row)

    def round(self, row):
        self.rounds.append(row)

    def checkpoint(self, round_, layout, vector):
        self.checkpoints.append((round_, vector.copy()))


def strategy(clients: int = 3, min_results: float = 1.0, inner=None, **evaluation):
    """A strategy in its first round, its nodes and its recorder. Node ids do not follow the names."""
    notes, manager = Notes(), SimpleClientManager()
    nodes = [Node(f"{900 - 7 * i}", str(i)) for i in range(clients)]
    for node in nodes:
        manager.register(node)
    start = np.arange(LAYOUT.size, dtype=np.float32)
    fedsa = FedSA(
        inner or FedAvg(min_fit_clients=1, min_available_clients=1, min_evaluate_clients=1),
        LAYOUT,
        start,
        cohort=Cohort(0, clients, wait_seconds=1),
        evaluation=Evaluation(rounds=2, **evaluation),
        recorder=notes,
        min_results=min_results,
    )
    instructions = fedsa.configure_fit(1, ndarrays_to_parameters([start]), manager)
    return fedsa, nodes, notes, instructions


def upload(client: str, update: np.ndarray, examples: int = 10, **changes) -> FitRes:
    header = wire.UploadHeader(
        client=client, round=1, layout=LAYOUT.digest, digest=wire.vector_digest(update), examples=examples,
        private_before="b", private_after=f"a{client}", report={"loss": 1.0, "accuracy_before": 0.5},
    )  # fmt: skip
    header = replace(header, **changes)
    return FitRes(OK, ndarrays_to_parameters([update]), examples, wire.write_header(header))


def updates(clients: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.normal(size=LAYOUT.size).astype(np.float32) for _ in range(clients)]


def test_the_new_value_is_the_weighted_mean_by_hand():
    fedsa, nodes, _, _ = strategy()
    sent, weights = updates(), [5, 20, 75]
    results = [(n, upload(n.client, u, w)) for n, u, w in zip(nodes, sent, weights, strict=True)]
    fedsa.aggregate_fit(1, results, [])
    expected = np.arange(LAYOUT.size) + sum(w / 100 * u for u, w in zip(sent, weights, strict=True))
    np.testing.assert_allclose(fedsa.shared, expected, rtol=0, atol=1e-5)
    assert fedsa.shared.dtype == np.float32


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_the_order_of_arrival_does_not_change_a_bit(order):
    sent = updates()
    reference, nodes, _, _ = strategy()
    reference.aggregate_fit(1, [(n, upload(n.client, u)) for n, u in zip(nodes, sent, strict=True)], [])
    fedsa, nodes, notes, _ = strategy()
    fedsa.aggregate_fit(1, [(nodes[i], upload(str(i), sent[i])) for i in order], [])
    assert np.array_equal(fedsa.shared, reference.shared)
    assert [row["client"] for row in notes.clients] == ["0", "1", "2"]


def test_a_broadcast_holds_the_shared_vector_and_nothing_else():
    fedsa, _, _, instructions = strategy()
    assert len(instructions) == 3
    for _, ins in instructions:
        header = wire.read_header(ins.config, wire.BroadcastHeader)
        vector = wire.read_vector(ins.parameters.tensors, LAYOUT)
        wire.check_belongs(header, vector, LAYOUT)
        assert np.array_equal(vector, fedsa.shared)
        assert set(ins.config) == {wire.KEY}


REJECTED = {
    "of another round": {"round": 2},
    "under another name": {"client": "1"},
    "without examples": {"examples": 0},
    "with a digest of other values": {"digest": "0" * 32},
    "of another layout": {"layout": "0" * 16},
    "with an error of its own": {"error": "TrainingError: the loss became nan"},
}


@pytest.mark.parametrize("changes", REJECTED.values(), ids=REJECTED)
def test_what_does_not_hold_is_rejected_named_and_the_others_go_on(changes):
    fedsa, nodes, notes, _ = strategy(min_results=0.5)
    sent = updates()
    results = [(n, upload(n.client, u)) for n, u in zip(nodes, sent, strict=True)]
    results[0] = (nodes[0], upload(**{"client": "0", "update": sent[0]} | changes))
    fedsa.aggregate_fit(1, results, [])
    np.testing.assert_allclose(
        fedsa.shared, np.arange(LAYOUT.size) + (sent[1] + sent[2]) / 2, rtol=0, atol=1e-5
    )
    assert [row["client"] for row in notes.clients] == ["1", "2"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_rejected(value):
    fedsa, nodes, notes, _ = strategy(min_results=0.5)
    sent = updates()
    sent[1][3] = value
    fedsa.aggregate_fit(1, [(n, upload(n.client, u)) for n, u in zip(nodes, sent, strict=True)], [])
    assert [row["client"] for row in notes.clients] == ["0", "2"]
    assert np.isfinite(fedsa.shared).all()


def test_a_second_answer_of_a_client_counts_once():
    fedsa, nodes, notes, _ = strategy(min_results=1.0)
    sent = updates()
    results = [(n, upload(n.client, u)) for n, u in zip(nodes, sent, strict=True)]
    once = strategy()[0]
    once.aggregate_fit(1, results, [])
    fedsa.aggregate_fit(1, [*results, results[0]], [])
    assert np.array_equal(fedsa.shared, once.shared)
    assert len(notes.clients) == 3


def test_too_few_results_end_the_run_with_the_reasons_and_leave_the_vector_as_it_was():
    fedsa, nodes, notes, _ = strategy(min_results=0.9)
    sent = updates()
    results = [(nodes[0], upload("0", sent[0])), (nodes[1], upload("1", sent[1], error="StoreError: gone"))]
    with pytest.raises(RunError, match=r"2 of 3 clients failed.*client 1: StoreError: gone"):
        fedsa.aggregate_fit(1, results, [ValueError("node lost")])
    assert np.array_equal(fedsa.shared, np.arange(LAYOUT.size, dtype=np.float32))
    assert notes.checkpoints == []


class Broken(FedAvg):
    """An inner strategy whose arithmetic went wrong."""

    def aggregate_fit(self, server_round, results, failures):
        return ndarrays_to_parameters([np.full(LAYOUT.size, np.nan)]), {}


def test_an_aggregate_that_is_not_finite_ends_the_run_and_names_the_strategy():
    fedsa, nodes, notes, _ = strategy(inner=Broken(min_fit_clients=1, min_available_clients=1))
    results = [(n, upload(n.client, u)) for n, u in zip(nodes, updates(), strict=True)]
    with pytest.raises(RunError, match=r"Broken made an unusable aggregate: .* NaN"):
        fedsa.aggregate_fit(1, results, [])
    assert notes.checkpoints == []


def evaluated(client: str, accuracy: float, examples: int) -> EvaluateRes:
    header = wire.UploadHeader(
        client=client, round=2, layout=LAYOUT.digest, digest="", examples=examples,
        report={"accuracy": accuracy, "loss": 1.0, "majority": 0.1},
    )  # fmt: skip
    return EvaluateRes(OK, 1.0, examples, wire.write_header(header))


def test_a_round_records_mean_weighted_and_worst_and_every_byte_both_ways():
    fedsa, nodes, notes, instructions = strategy(every=1)
    from strategies.traffic import message_bytes

    sent = updates()
    results = [(n, upload(n.client, u)) for n, u in zip(nodes, sent, strict=True)]
    fedsa.aggregate_fit(1, results, [])
    down = sum(message_bytes(ins) for _, ins in instructions)
    manager = SimpleClientManager()
    for node in nodes:
        manager.register(node)
    asked = fedsa.configure_evaluate(2, ndarrays_to_parameters([fedsa.shared]), manager)
    answers = [
        (n, evaluated(n.client, a, e)) for n, a, e in zip(nodes, (0.2, 0.6, 1.0), (10, 10, 80), strict=True)
    ]
    fedsa.aggregate_evaluate(2, answers, [])
    (row,) = notes.rounds
    assert row["accuracy"] == pytest.approx(0.6)
    assert row["accuracy_weighted"] == pytest.approx(0.88)
    assert row["accuracy_worst"] == 0.2
    assert row["accuracy_before"] == 0.5
    assert row["bytes_up"] == sum(message_bytes(r) for _, r in results) + sum(
        message_bytes(r) for _, r in answers
    )
    assert row["bytes_down"] == down + sum(message_bytes(ins) for _, ins in asked)
    assert json.dumps(row)


@pytest.mark.parametrize(("every", "due"), [(0, [2]), (1, [1, 2]), (2, [2]), (5, [2])])
def test_all_clients_are_evaluated_when_due_and_always_in_the_last_round(every, due):
    evaluation = Evaluation(rounds=2, every=every)
    assert [round_ for round_ in (1, 2) if evaluation.due(round_)] == due
