"""Colluding sign flippers on scikit-learn's digits: who holds against them, and who does not."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.server.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, Strategy
from server_side import EVERYONE, Server
from sklearn.datasets import load_digits

from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.vector import read_array
from strategies import Bounds

CLIENTS, COLLUDING, ROUNDS, STEPS, RATE = 10, 2, 25, 5, 0.5
LAYOUT = Layout((TensorSpec("x.lora_A.weight", (10, 65), "A", "x"),))
RULES: dict[str, Callable[[], Strategy]] = {
    "plain mean": lambda: FedAvg(**EVERYONE),
    "trimmed mean": lambda: FedTrimmedAvg(beta=0.2, **EVERYONE),
    "median": lambda: FedMedian(**EVERYONE),
    "Krum": lambda: Krum(num_malicious_clients=COLLUDING, num_clients_to_keep=0, **EVERYONE),
}
ROBUST = [name for name in RULES if name != "plain mean"]


def digits() -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[np.ndarray, np.ndarray]]:
    """Pixels (n, 65), the last of them 1, and labels (n,) of each client, and the 500 of the test."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels, labels = np.hstack([pixels / 16, np.ones((len(labels), 1))])[order], labels[order]
    parts = np.array_split(np.arange(500, len(labels)), CLIENTS)
    return [(pixels[part], labels[part]) for part in parts], (pixels[:500], labels[:500])


def learned(vector: np.ndarray, pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The change (650,) of softmax regression after some steps of gradient descent."""
    weights, targets = vector.reshape(10, 65).astype(float), np.eye(10)[labels]
    for _ in range(STEPS):
        scores = np.exp((logits := pixels @ weights.T) - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        weights -= RATE * (scores - targets).T @ pixels / len(labels)
    return weights.ravel() - vector


def accuracy(rule: str, colluding: int, factor: float = -4.0, **bounds) -> float:
    """After all rounds, of a federation whose first clients agree on a multiple of their mean update."""
    clients, (pixels, labels) = digits()
    start = np.zeros(LAYOUT.size, np.float32)
    server = Server(
        LAYOUT, CLIENTS, inner=RULES[rule](), start=start, rounds=ROUNDS + 1, min_results=0.5,
        bounds=Bounds(**bounds),
    )  # fmt: skip
    for round_ in range(1, ROUNDS + 1):
        sent = server.ask(round_)
        updates = {}
        for client, part in enumerate(clients):
            vector = read_array(sent[str(client)].parameters.tensors, np.float32, start.nbytes)
            updates[str(client)] = learned(vector, *part)
        if colluding:
            agreed = factor * np.mean([updates[str(client)] for client in range(colluding)], axis=0)
            updates |= {str(client): agreed for client in range(colluding)}
        server.take({c: server.upload(c, update) for c, update in updates.items()}, round_=round_)
    predicted = (pixels @ server.strategy.common.reshape(10, 65).T).argmax(axis=1)
    return float((predicted == labels).mean())


@pytest.fixture(scope="module")
def honest() -> float:
    return accuracy("plain mean", 0)


@pytest.mark.case(17)
def test_the_plain_mean_learns_and_fails_when_a_fifth_of_the_clients_flip_their_sign(honest):
    assert honest > 0.9
    assert accuracy("plain mean", COLLUDING) < 0.5


@pytest.mark.sampled(3)
@pytest.mark.case(17)
@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("factor", [-1.0, -4.0, -1e3])
def test_a_robust_rule_loses_at_most_three_points(honest, rule, factor):
    assert accuracy(rule, COLLUDING, factor) > honest - 0.03


def test_a_norm_bound_keeps_out_what_is_beyond_it_and_clipped_to_it_the_attack_goes_on(honest):
    assert accuracy("plain mean", COLLUDING, median_factor=3.0) > honest - 0.03
    clipped = accuracy("plain mean", COLLUDING, median_factor=3.0, action="clip")
    assert accuracy("plain mean", COLLUDING) + 0.3 < clipped < honest - 0.1
