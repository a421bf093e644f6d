"""What inner strategies make of the updates: Flower's numbers, by whichever way they are handed over."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from flwr.common import FitRes, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    Strategy,
)
from server_side import LAYOUT, OK, SHARE_AB, Server, some_updates

from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.selection import TopK
from fedsa_lora.exchange.split import Alternate
from strategies import Bulyan, FedEx, QFedAvg
from strategies.rules.abilities import able
from strategies.rules.flower import OfEach, OfFactors, OfMean, recall, remembered, rule_for, sound_step
from strategies.rules.inner import bind_inner
from strategies.rules.updates import Update

START = np.linspace(-1, 1, LAYOUT.size, dtype=np.float32)
ALL = frozenset(LAYOUT.names)
STEPS = {"eta": 0.05, "tau": 0.1, "initial_parameters": ndarrays_to_parameters([START])}
LINEAR = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(proximal_mu=0.1),
    "FedAvgM": lambda: FedAvgM(
        server_momentum=0.9, server_learning_rate=0.5, initial_parameters=ndarrays_to_parameters([START])
    ),
    "FedAdam": lambda: FedAdam(**STEPS),
    "FedYogi": lambda: FedYogi(**STEPS),
    "FedAdagrad": lambda: FedAdagrad(**STEPS),
}
every_linear = pytest.mark.parametrize("name", LINEAR)


def updates_of(vectors, examples=None, losses=None, shared=ALL) -> list[Update]:
    examples, losses = examples or [10] * len(vectors), losses or [1.0] * len(vectors)
    told = zip(vectors, examples, losses, strict=True)
    return [Update(str(i), n, shared, None, v, loss) for i, (v, n, loss) in enumerate(told)]


def rounds(count: int = 3, clients: int = 4):
    return [updates_of(some_updates(clients, seed=round_), [3, 10, 40, 7]) for round_ in range(1, count + 1)]


@every_linear
def test_handing_over_the_mean_is_handing_over_every_result(name):
    rule, whole, vector, expected = OfMean(LINEAR[name](), LAYOUT), LINEAR[name](), START, START
    for round_, updates in enumerate(rounds(), 1):
        ended = [FitRes(OK, ndarrays_to_parameters([expected + u.values]), u.examples, {}) for u in updates]
        parameters, _ = whole.aggregate_fit(round_, [(None, result) for result in ended], [])
        (expected,) = parameters_to_ndarrays(parameters)
        vector = rule(round_, vector, updates).vector
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-6)
    assert not np.allclose(vector, START, rtol=0, atol=0.01)


def own_copies(inner) -> list[np.ndarray]:
    """The values that a strategy remembers by itself, and steps from in the next round."""
    if isinstance(inner, FedAvgM):
        return parameters_to_ndarrays(inner.initial_parameters)
    return getattr(inner, "current_weights", [])


@every_linear
def test_values_stay_float32_and_momentum_does_not_move_what_nobody_shared(name):
    x, y = LAYOUT.names
    inner, (one, two) = LINEAR[name](), rounds(2)
    rule = OfMean(inner, LAYOUT)
    vector = rule(1, START, one).vector
    span, part = LAYOUT.span(x), frozenset([x])
    at = np.arange(LAYOUT.size)[span]
    after = rule(2, vector, [Update(u.client, u.examples, part, at, u.values[span]) for u in two]).vector
    assert np.array_equal(after[LAYOUT.span(y)], vector[LAYOUT.span(y)])
    assert not np.array_equal(after[span], vector[span])
    assert len(own_copies(inner)) == (name not in ("FedAvg", "FedProx"))
    for array in [after, *own_copies(inner)]:
        assert array.dtype == np.float32
        assert np.array_equal(array, after)


def krum_scores(vectors: np.ndarray, malicious: int) -> np.ndarray:
    """Sum of squared distances to the n - f - 2 nearest others (arXiv:1703.02757)."""
    apart = ((vectors[:, None] - vectors[None]) ** 2).sum(-1)
    nearest = max(1, len(vectors) - malicious - 2)
    return np.sort(apart, axis=1)[:, 1 : nearest + 1].sum(axis=1)


def bulyan(vectors: np.ndarray, malicious: int) -> np.ndarray:
    """Krum n - 2 f times, then by value the mean of the n - 4 f nearest to the median (arXiv:1802.07927)."""
    left, chosen = list(vectors), []
    for _ in range(len(vectors) - 2 * malicious):
        chosen.append(left.pop(int(np.argmin(krum_scores(np.array(left), malicious)))))
    table = np.array(chosen)
    order = np.argsort(np.abs(table - np.median(table, axis=0)), axis=0)
    return np.take_along_axis(table, order, axis=0)[: len(table) - 2 * malicious].mean(axis=0)


def best(vectors: np.ndarray, count: int, examples: list[int]) -> np.ndarray:
    chosen = np.argsort(krum_scores(vectors, 1))[:count]
    return np.average(vectors[chosen], axis=0, weights=np.array(examples)[chosen])


BY_HAND = {
    "FedMedian": (FedMedian, lambda v, n: np.median(v, axis=0)),
    "FedTrimmedAvg": (lambda: FedTrimmedAvg(beta=0.2), lambda v, n: np.sort(v, axis=0)[1:-1].mean(axis=0)),
    "Krum": (
        lambda: Krum(num_malicious_clients=1, num_clients_to_keep=0),
        lambda v, n: v[np.argmin(krum_scores(v, 1))],
    ),
    "Multi-Krum": (
        lambda: Krum(num_malicious_clients=1, num_clients_to_keep=3),
        lambda v, n: best(v, 3, n),
    ),
    "Bulyan": (lambda: Bulyan(num_malicious_clients=1), lambda v, n: bulyan(v, 1)),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("seed", range(5))
def test_a_strategy_that_compares_clients_gives_what_its_paper_says(name, seed):
    make, expected = BY_HAND[name]
    examples = [3, 10, 40, 7, 9, 11, 5]
    updates = updates_of(some_updates(7, seed=seed), examples)
    found = OfEach(make(), LAYOUT)(1, START, updates).vector
    ended = np.array([START + u.values for u in updates], np.float64)
    np.testing.assert_allclose(found, expected(ended, examples), rtol=0, atol=1e-6)


def q_fedavg(q: float, losses: list[float], vectors, rate: float = 0.5) -> np.ndarray:
    inner = QFedAvg(q_param=q, qffl_learning_rate=rate)
    inner.pre_weights = [START]
    return OfEach(inner, LAYOUT)(1, START, updates_of(vectors, losses=losses)).vector


@pytest.mark.parametrize("q", [0.0, 0.2, 1.0, 3.0])
def test_q_fedavg_gives_what_its_paper_says(q):
    """Algorithm 2 of arXiv:1905.10497 with 1 / L = 0.5, as it is written there."""
    losses, vectors = [0.3, 1.2, 2.5], some_updates(3)
    gradients = [-v.astype(np.float64) / 0.5 for v in vectors]
    deltas = [loss**q * g for loss, g in zip(losses, gradients, strict=True)]
    sizes = [q * loss ** (q - 1) * (g @ g) + loss**q / 0.5 for loss, g in zip(losses, gradients, strict=True)]
    np.testing.assert_allclose(q_fedavg(q, losses, vectors), START - sum(deltas) / sum(sizes), atol=1e-6)


def test_q_fedavg_is_the_plain_mean_without_q_and_leans_to_the_larger_loss_with_it():
    vectors = some_updates(2)
    np.testing.assert_allclose(q_fedavg(0, [1.0, 9.0], vectors), START + sum(vectors) / 2, atol=1e-6)
    moved = q_fedavg(6, [0.5, 2.0], vectors) - START
    cosine = [moved @ v / np.linalg.norm(moved) / np.linalg.norm(v) for v in vectors]
    assert cosine[1] > 0.999 > cosine[0]


@pytest.mark.parametrize("loss", [-1.0, 0, 5e-324, 1, 1e308])
def test_no_loss_that_a_client_may_tell_ends_a_round_of_q_fedavg(loss):
    for q in (0, 0.2, 5):
        for others in ([1.0, 2.0], [0.0, 0.0], [5e-324, 5e-324], [1e308, 0.0]):
            assert np.isfinite(q_fedavg(q, [loss, *others], some_updates(3))).all()


TELLING = [0, -0.0, 5e-324, 1e-30, 1e-12, 1e-3, 0.01, 0.1]  # that a client has hardly anything to learn


@pytest.mark.parametrize("q", [0.1, 0.2, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("clients", [2, 5, 10])
def test_a_loss_near_zero_neither_freezes_q_fedavg_nor_blows_it_up(q, clients):
    """Of n clients that all moved by the same, the sum of h_k has n - 1 parts h and one that is at most
    100^(1 - q) h, and the sum of F_k^q g_k has n - 1 of n parts or more: so the step is at least
    (n - 1) / (n - 1 + 100^(1 - q)) of the one without a hostile loss, and never longer."""
    vectors = [some_updates(1)[0]] * clients
    honest = q_fedavg(q, [1.0] * clients, vectors) - START
    least = (clients - 1) / (clients - 1 + 100 ** max(0.0, 1 - q))
    for loss in TELLING:
        moved = q_fedavg(q, [loss, *[1.0] * (clients - 1)], vectors) - START
        factor = moved @ honest / (honest @ honest)
        assert least - 1e-5 <= factor <= 1 + 1e-5, loss


@pytest.mark.parametrize("q", [0.2, 1.0, 3.0])
def test_a_client_without_a_loss_counts_in_q_fedavg_as_if_it_were_not_there(q):
    vectors, losses = some_updates(4), [0.3, 1.2, 2.5]
    alone = q_fedavg(q, losses, vectors[1:])
    np.testing.assert_allclose(q_fedavg(q, [0.0, *losses], vectors), alone, atol=1e-6)
    assert np.array_equal(q_fedavg(q, [0.0] * 4, vectors), START)
    np.testing.assert_allclose(q_fedavg(q, [1e-30, *losses], vectors), alone, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("q", [0.2, 1.0])
def test_no_loss_is_so_large_that_the_others_have_no_weight_in_q_fedavg(q):
    """It weighs as much as 100 times the median, 1.2: the paper's numbers with that loss as F_k^q."""
    vectors, losses = some_updates(4), [0.3, 1.2, 2.5]
    gradients = [-v.astype(np.float64) / 0.5 for v in vectors]
    for loss in (121, 1e3, 1e30, 1e150, 1e308):
        told = [loss, *losses]
        weights = [min(n, 120.0) ** q for n in told]
        sizes = [w * (q * (g @ g) / n + 2) for w, g, n in zip(weights, gradients, told, strict=True)]
        total = sum(w * g for w, g in zip(weights, gradients, strict=True))
        np.testing.assert_allclose(q_fedavg(q, told, vectors), START - total / sum(sizes), atol=1e-5)


def test_q_fedavg_without_a_loss_or_before_it_was_configured_says_so():
    result = (None, FitRes(OK, ndarrays_to_parameters([START]), 1, {}))
    inner = QFedAvg()
    with pytest.raises(RunError, match="before it was configured"):
        inner.aggregate_fit(1, [result], [])
    inner.pre_weights = [START]
    with pytest.raises(RunError, match="needs the training loss of each client, got None"):
        inner.aggregate_fit(1, [result], [])


class Own(FedAvg):
    """A user's strategy, which averages as FedAvg does."""

    def configure_fit(self, server_round, parameters, client_manager):
        return super().configure_fit(server_round, parameters, client_manager)[:2]


class Anything(FedAvg):
    """A user's strategy, which may do anything with its results."""

    def aggregate_fit(self, server_round, results, failures):
        return super().aggregate_fit(server_round, results, failures)


class Declared(Anything):
    """One that says what it does with them."""

    linear = True


class Silent(Declared):
    """One below it that does something else, and does not say what."""

    def aggregate_fit(self, server_round, results, failures):
        return None, {}


def test_strategies_that_use_the_mean_alone_get_it_and_all_others_every_client():
    kinds = {name: rule_for(make(), LAYOUT) for name, make in LINEAR.items()}
    assert {type(rule) for rule in kinds.values()} == {OfMean}
    assert {type(rule_for(make(), LAYOUT)) for make, _ in BY_HAND.values()} == {OfEach}
    assert type(rule_for(FedEx(), LAYOUT)) is OfFactors


def test_a_subclass_is_what_the_class_is_whose_aggregation_it_has_unless_it_declares_otherwise():
    kinds = {kind: type(rule_for(kind(), LAYOUT)) for kind in (Own, Anything, Declared, Silent)}
    assert kinds == {Own: OfMean, Anything: OfEach, Declared: OfMean, Silent: OfEach}
    assert able(Own, "averages")
    assert able(Own, "stateless")
    assert not able(Declared, "stateless"), "only what is declared"
    for make in LINEAR.values():
        kind = type("Below", (type(make()),), {})
        for ability in ("linear", "averages", "stateless"):
            assert able(kind, ability) == able(kind.__base__, ability)


def test_a_subclass_of_fedavg_gives_the_bits_of_fedavg():
    found = []
    for inner in (FedAvg(), type("Mine", (FedAvg,), {})()):
        rule, vector = rule_for(inner, LAYOUT), START
        for round_, updates in enumerate(rounds(), 1):
            vector = rule(round_, vector, updates).vector
        found.append(vector)
    assert np.array_equal(*found)


def clipped(inner: Strategy, norm: float, noise: float = 0.0) -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(inner, noise, norm, 4)


@pytest.mark.parametrize("name", LINEAR)
def test_what_a_strategy_remembers_is_kept_and_recalled_through_one_around_it(name):
    """A restored one continues with the bits of the one that was not interrupted."""
    whole, early = (clipped(LINEAR[name](), 0.5) for _ in range(2))
    vectors = dict.fromkeys((whole, early), START)
    for round_, updates in enumerate(rounds(4), 1):
        if round_ == 3:
            memory = {key: value.copy() for key, value in remembered(early).items()}
            late = clipped(LINEAR[name](), 0.5)
            vectors[late] = vectors.pop(early)
            recall(late, memory, vectors[late])
        for strategy, vector in vectors.items():
            strategy.current_round_params = [vector]
            vectors[strategy] = rule_for(strategy, LAYOUT)(round_, vector, updates).vector
    assert np.array_equal(*vectors.values())
    assert bool(remembered(whole)) == (name not in ("FedAvg", "FedProx"))


def test_a_clipping_norm_that_adapts_goes_on_where_it_was():
    def adaptive() -> Strategy:
        return DifferentialPrivacyServerSideAdaptiveClipping(
            FedAvg(), 0.0, 4, initial_clipping_norm=0.05, clipped_count_stddev=0.0
        )

    before, after = adaptive(), adaptive()
    before.clipping_norm = 0.07
    recall(after, remembered(before), START)
    assert after.clipping_norm == 0.07
    assert remembered(clipped(FedAvg(), 0.5)) == {}, "a fixed one is the config's"


def test_a_strategy_around_another_is_given_every_client_and_clips_each():
    inner, vectors = clipped(FedAvg(), 0.25), some_updates(4)
    inner.current_round_params = [START]
    rule = rule_for(inner, LAYOUT)
    assert type(rule) is OfEach
    short = [v * min(1, 0.25 / np.linalg.norm(v)) for v in vectors]
    assert min(map(np.linalg.norm, vectors)) > 0.25
    found = rule(1, START, updates_of(vectors)).vector
    np.testing.assert_allclose(found, START + np.mean(short, axis=0), rtol=0, atol=1e-6)


def test_a_client_whose_update_is_zero_is_named_where_a_strategy_divides_by_its_norm():
    inner = clipped(FedAvg(), 1.0)
    inner.current_round_params = [START]
    vectors = [np.zeros_like(START), *some_updates(3)]
    with pytest.raises(RunError, match=r"divided by 0; the updates of these clients are 0: \['0'\]"):
        sound_step(rule_for(inner, LAYOUT), inner, 1, START, updates_of(vectors))


PAIRED = Layout(
    (
        *(TensorSpec(f"{layer}.lora_A.weight", (2, 6), "A", layer) for layer in "xy"),
        *(TensorSpec(f"{layer}.lora_B.weight", (5, 2), "B", layer) for layer in "xy"),
    )
)
CONFIGS = sorted(Path(__file__).parents[2].glob("conf/strategy/*.yaml"))


def configured(path: Path, **known):
    """The strategy of a config file."""
    node = yaml.safe_load(path.read_text())
    if "noise_multiplier" in node:  # noise has other bits each time
        node |= {"noise_multiplier": 0.0, "num_sampled_clients": 7}
    return bind_inner(node, "strategy", []).build(**known)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("codec", [None, TopK(ratio=0.4)], ids=["dense", "top_k"])
def test_the_order_of_arrival_does_not_change_a_bit_whatever_the_strategy(path, codec):
    order, start, found = [3, 0, 6, 2, 5, 1, 4], some_updates(1, PAIRED.size, 9)[0], []
    split = {"fedsvd": Alternate(order=("B",), allow=("A", "B"))}.get(path.stem, SHARE_AB)
    for turned in (False, True):
        inner = configured(path, initial_parameters=ndarrays_to_parameters([start]), seed=0)
        server = Server(PAIRED, 7, inner=inner, split=split, codec=codec, start=start)
        for round_ in (1, 2):
            server.ask(round_)
            size = PAIRED.select(server.strategy.split.in_round(PAIRED, round_)).size
            sent = {str(i): u for i, u in enumerate(some_updates(7, size, round_))}
            results = {c: server.upload(c, u, 3 + int(c)) for c, u in sent.items()}
            server.take(results, [str(i) for i in order] if turned else None, round_)
        found.append(server.strategy.common)
    assert np.array_equal(*found)
    assert not np.array_equal(found[0], start)
    assert found[0].dtype == np.float32


def test_the_arithmetic_of_a_turn_of_alternate_leaves_the_resting_factor_to_the_bit():
    inner = LINEAR["FedAvg"]()
    server = Server(PAIRED, 3, inner=inner, split=Alternate(allow=("A", "B")))
    for round_, moves in ((1, "B"), (2, "A"), (3, "B")):
        before = server.strategy.common
        server.ask(round_)
        results = {
            str(i): server.upload(str(i), u) for i, u in enumerate(some_updates(3, PAIRED.count(moves)))
        }
        after = server.take(results, round_=round_)
        for spec in PAIRED:
            same = np.array_equal(after[PAIRED.span(spec.name)], before[PAIRED.span(spec.name)])
            assert same == (spec.role != moves)
