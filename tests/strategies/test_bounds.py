"""What of well-formed answers is too large to be believed, and when there are too many of them."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.common import EvaluateRes
from hypothesis import given, settings
from hypothesis import strategies as st
from named_nodes import Named
from remarks import remarks
from server_side import LAYOUT, OK, Server, some_updates

from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.codec import Dense
from fedsa_lora.exchange.selection import RandomK, TopK
from strategies import Bounds
from strategies.round.admission import Remark
from strategies.round.bounds import REJECTED, UPLOADS, norms_and_limits
from strategies.rules.updates import Update

CLIENTS = [str(i) for i in range(5)]
MEDIAN, FIXED = {"median_factor": 3.0}, {"norm": 10.0}
CODECS = [Dense(), Dense(values="int8"), TopK(ratio=0.5), TopK(ratio=0.5, values="fp16"), RandomK(ratio=0.5)]
LAYERS = Layout(
    (
        *(TensorSpec(f"{layer}.lora_A.weight", (4, 6), "A", layer) for layer in "xyz"),
        TensorSpec("classifier.weight", (3, 4), "head", "classifier"),
    )
)
SEEDS = st.integers(0, 2**32 - 1)


def uploads(server: Server, sent, **changes):
    return {c: server.upload(c, u, **changes) for c, u in zip(CLIENTS, sent, strict=True)}


def played(sent, order=None, codec=None, **bounds) -> Server:
    server = Server(clients=5, min_results=0.1, codec=codec, bounds=Bounds(**bounds))
    server.ask()
    server.take(uploads(server, sent), order)
    return server


def attacked(seed: int = 3, factor: float = 1e6):
    """Five updates, of which the second is a million times as long."""
    sent = some_updates(5, seed=seed)
    sent[1] = np.float32(factor) * sent[1]
    return sent


def covering(seed: int, clients: int = 5) -> list[Update]:
    """Clients that share some tensors each, some of them with a lower rank."""
    rng = np.random.default_rng(seed)
    updates = []
    for client in range(clients):
        rank = [None, 2][client % 2]
        part = LAYERS.limited(rank).select([name for name in LAYERS.names if rng.random() < 0.7])
        updates.append(_update(str(client), part, rank, rng.normal(size=part.size).astype(np.float32)))
    return updates


def _update(client: str, part: Layout, rank: int | None, values: np.ndarray) -> Update:
    return Update(client, 10, frozenset(part.names), LAYERS.index(part), values, rank=rank)


@pytest.mark.case(8)
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("bound", [MEDIAN, FIXED], ids=["median", "fixed"])
def test_an_update_a_million_times_too_long_is_rejected_by_name_and_the_others_are_aggregated(codec, bound):
    sent = attacked()
    server = played(sent, codec=codec, **bound)
    without = Server(clients=5, min_results=0.1, codec=codec)
    without.ask()
    honest = uploads(without, sent)
    del honest["1"]
    assert np.array_equal(server.strategy.common, without.take(honest))
    (row,) = server.notes.rounds
    (remark,) = remarks(row)
    assert (remark.client, remark.kind) == ("1", "rejected")
    norm, limit = [float(word.rstrip(",")) for word in remark.reason.split() if word[0].isdecimal()]
    assert norm > 1e5 > 30 > limit


@pytest.mark.case(8)
@pytest.mark.parametrize("bound", [MEDIAN, FIXED], ids=["median", "fixed"])
def test_where_it_is_to_be_clipped_it_keeps_its_direction_and_has_the_norm_of_the_bound(bound):
    sent = attacked()
    server = played(sent, action="clip", **bound)
    limit = 3 * np.median([np.linalg.norm(u) for u in sent]) if bound is MEDIAN else 10
    by_hand = [u * min(1, limit / np.linalg.norm(u)) for u in sent]
    np.testing.assert_allclose(server.strategy.common, server.start + np.mean(by_hand, axis=0), atol=1e-5)
    (row,) = server.notes.rounds
    (remark,) = remarks(row)
    assert (row["fit_clients"], row["fit_failures"]) == (5, 0)
    assert (remark.client, remark.kind) == ("1", "clipped")
    assert f"the bound is {limit:.4g}" in remark.reason


@pytest.mark.parametrize("action", ["reject", "clip"])
@pytest.mark.parametrize("factor", [1.0, 1e6])
def test_the_order_of_arrival_does_not_change_who_is_bounded_nor_a_bit(action, factor):
    servers = [
        played(attacked(factor=factor), order, action=action, median_factor=1.0)
        for order in (CLIENTS, CLIENTS[::-1], ["2", "4", "1", "0", "3"])
    ]
    for server in servers:
        assert np.array_equal(server.strategy.common, servers[0].strategy.common)
        assert server.notes.rounds[0]["remarks"] == servers[0].notes.rounds[0]["remarks"]
    assert remarks(servers[0].notes.rounds[0], "rejected" if action == "reject" else "clipped")


@pytest.mark.parametrize("action", ["reject", "clip"])
@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_a_bound_that_nobody_exceeds_changes_no_bit(action, codec):
    sent = some_updates(5)
    bounded = played(sent, codec=codec, action=action, norm=1e3, median_factor=1e3)
    assert np.array_equal(bounded.strategy.common, played(sent, codec=codec).strategy.common)


def test_of_two_bounds_the_smaller_counts():
    updates = [Update(str(i), 1, frozenset(LAYOUT.names), None, u) for i, u in enumerate(some_updates(5))]
    alone = [norms_and_limits(LAYOUT, updates, Bounds(**b))[1] for b in ({"norm": 4.0}, {"median_factor": 1})]
    both = norms_and_limits(LAYOUT, updates, Bounds(norm=4.0, median_factor=1))[1]
    assert np.array_equal(both, np.minimum(*alone))


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 9), st.booleans())
def test_where_all_share_the_same_it_is_the_median_of_the_norms(seed, clients, sparse):
    rng, everything = np.random.default_rng(seed), frozenset(LAYERS.names)
    updates = []
    for i in range(clients):
        at = np.sort(rng.choice(LAYERS.size, 9, replace=False)) if sparse else None
        values = rng.normal(size=9 if sparse else LAYERS.size).astype(np.float32)
        updates.append(Update(str(i), 1, everything, at, values))
    norms, limits = norms_and_limits(LAYERS, updates, Bounds(median_factor=2.0))
    np.testing.assert_allclose(norms, [np.linalg.norm(u.values) for u in updates], rtol=1e-6)
    np.testing.assert_allclose(limits, 2 * np.median(norms), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(-60, 60))
def test_limits_follow_the_scale_and_the_clients_and_nothing_else(seed, exponent):
    bounds, updates = Bounds(median_factor=1.5), covering(seed)
    norms, limits = norms_and_limits(LAYERS, updates, bounds)
    scaled = [replace(u, values=np.ldexp(u.values, exponent)) for u in updates]
    for found, expected in zip(norms_and_limits(LAYERS, scaled, bounds), (norms, limits), strict=True):
        np.testing.assert_allclose(found, np.ldexp(expected, exponent), rtol=1e-6)
    turned = norms_and_limits(LAYERS, updates[::-1], bounds)
    np.testing.assert_allclose(turned, [norms[::-1], limits[::-1]], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_values_of_one_size_have_the_norm_of_their_number_whatever_tensors_and_rank_a_client_has(seed):
    """No client is out of the ordinary because it shares fewer tensors or has fewer rows."""
    updates = [replace(u, values=np.ones_like(u.values)) for u in covering(seed)]
    norms, limits = norms_and_limits(LAYERS, updates, Bounds(median_factor=1.0))
    np.testing.assert_allclose(norms, np.sqrt([u.values.size for u in updates]))
    np.testing.assert_allclose(limits, norms)


def test_a_client_that_shares_the_longest_tensor_alone_is_compared_in_that_tensor():
    head = ["classifier.weight"]
    tall = {name: 10.0 if name in head else 1.0 for name in LAYERS.names}
    updates = []
    for client, names in enumerate([LAYERS.names, LAYERS.names, LAYERS.names, head]):
        part = LAYERS.select(names)
        values = np.concatenate([np.full(spec.size, tall[spec.name], np.float32) for spec in part])
        updates.append(_update(str(client), part, None, values))
    norms, limits = norms_and_limits(LAYERS, updates, Bounds(median_factor=1.0))
    np.testing.assert_allclose(limits, norms)
    assert norms[3] ** 2 / updates[3].values.size > 5 * norms[0] ** 2 / LAYERS.size


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(10, 1e30))
def test_a_minority_cannot_raise_the_bound_beyond_what_honest_clients_sent(seed, factor):
    rng = np.random.default_rng(seed)
    honest = [rng.normal(size=LAYERS.size).astype(np.float32) for _ in range(3)]
    hostile = [np.float32(factor) * rng.normal(size=LAYERS.size).astype(np.float32) for _ in range(2)]
    everything = frozenset(LAYERS.names)
    updates = [Update(str(i), 1, everything, None, v) for i, v in enumerate([*hostile, *honest])]
    norms, limits = norms_and_limits(LAYERS, updates, Bounds(median_factor=1.0))
    assert norms[2:].min() * (1 - 1e-6) <= limits[0] <= norms[2:].max() * (1 + 1e-6)


def test_a_client_that_shares_nothing_has_nothing_to_bound():
    updates = [_update(str(i), LAYERS.select(()), None, np.zeros(0, np.float32)) for i in range(3)]
    norms, limits = norms_and_limits(LAYERS, updates, Bounds(median_factor=3.0))
    assert norms.tolist() == limits.tolist() == [0, 0, 0]


@pytest.mark.case(8)
@pytest.mark.parametrize("action", ["reject", "clip"])
def test_the_largest_finite_values_overflow_nothing(action):
    sent = attacked()
    sent[1][:] = np.finfo(np.float32).max
    server = played(sent, action=action, median_factor=3.0)
    assert np.abs(server.strategy.common - server.start).max() < 10


@pytest.mark.case(12)
def test_more_examples_than_the_cap_are_rejected_by_name_and_weigh_nothing():
    sent = some_updates(5)
    server = Server(clients=5, min_results=0.1, bounds=Bounds(max_examples=10))
    server.ask()
    shared = server.take(uploads(server, sent) | {"1": server.upload("1", sent[1], 11)})
    np.testing.assert_allclose(shared, server.start + np.mean(sent[:1] + sent[2:], axis=0), atol=1e-5)
    assert remarks(server.notes.rounds[0]) == [
        Remark("1", "rejected", "claims 11 examples, expected 1 to 10")
    ]


@pytest.mark.case(12)
@pytest.mark.parametrize("claims", [{"examples": 11}, {"measured": 11}])
def test_more_examples_than_the_cap_are_rejected_in_an_evaluation_too(claims):
    """A client weighs in the weighted accuracy by the examples that it was measured on."""
    rows = []
    for sent in ({}, claims):
        server = Server(clients=3, every=1, bounds=Bounds(max_examples=10))
        server.ask()
        server.take({c: server.upload(c, u) for c, u in zip("012", some_updates(3), strict=True)})
        server.ask_to_evaluate()
        metrics = {
            c: server.upload(
                c, np.zeros(server.layout.size), report={"loss": 1.0, "accuracy": 0.2 * int(c)}, **more
            ).metrics
            for c, more in zip("012", ({}, {}, sent), strict=True)
        }
        answers = {c: EvaluateRes(OK, 1.0, 10, entries) for c, entries in metrics.items()}
        server.strategy.aggregate_evaluate(1, [(server.nodes[c], a) for c, a in answers.items()], [])
        rows.append(server.notes.rounds[0])
    assert rows[0]["measured_clients"] == 3
    assert rows[1]["measured_clients"] == 2
    assert rows[1]["accuracy_weighted"] == pytest.approx(0.1)
    (remark,) = remarks(rows[1])
    (name,) = claims
    assert (remark.client, remark.kind) == ("2", "rejected")
    assert remark.reason.startswith({"examples": "claims 11", "measured": "was measured on 11"}[name])


def test_a_bound_on_training_binds_what_a_client_was_measured_on_before_it():
    server = Server(clients=3, bounds=Bounds(max_examples=10), min_results=0.1)
    server.ask()
    answers = {c: server.upload(c, u) for c, u in zip("012", some_updates(3), strict=True)}
    server.take(answers | {"1": server.upload("1", some_updates(3)[1], measured=11)})
    assert [remark.client for remark in remarks(server.notes.rounds[0])] == ["1"]


def rounds_with(server: Server, wrong: list[list[str]]) -> None:
    """A round for each list of clients that answer what is wrong."""
    for round_, names in enumerate(wrong, server.strategy.rejections._uploads // 5 + 1):
        server.ask(round_)
        sent = some_updates(5, seed=round_)
        bad = {c: server.upload(c, sent[0], round=99) for c in names}
        server.take(uploads(server, sent) | bad, round_=round_)


def limited(most: float | None) -> Server:
    return Server(clients=5, min_results=0.1, bounds=Bounds(max_rejections=most))


def test_a_run_with_too_many_rejections_ends_with_the_clients_the_counts_and_the_reasons():
    server = limited(0.3)
    rounds_with(server, [["0"], ["0", "3"], ["0"]])
    before = server.strategy.common.copy()
    with pytest.raises(
        RunError, match=r"7 of 20 uploads were rejected \(client 0: 4, client 3: 2, client 4: 1\)"
    ) as caught:
        rounds_with(server, [["0", "3", "4"]])
    assert "bounds.max_rejections=0.3" in str(caught.value)
    last = str(caught.value).splitlines()[-1]
    assert last == "client 0: answers round 99, this is round 4 (and 2 more: 3, 4)"
    assert np.array_equal(server.strategy.common, before)
    assert len(server.notes.checkpoints) == 3


@pytest.mark.parametrize("most", [0.2, 1.0, None])
def test_exactly_the_share_is_let_pass_and_without_one_everything(most):
    server = limited(most)
    rounds_with(server, [["2"]] * 5 if most == 0.2 else [CLIENTS[1:]] * 5)
    assert len(server.notes.checkpoints) == 5


def test_a_client_that_fails_is_not_one_that_is_rejected():
    server = limited(0.0)
    server.ask()
    sent = some_updates(5)
    answers = uploads(server, sent) | {"0": server.upload("0", sent[0], error="TrainingError: nan")}
    arrived = [(server.nodes[c], answer) for c, answer in answers.items() if c != "1"]
    server.strategy.aggregate_fit(1, arrived, [ValueError("node lost")])
    (row,) = server.notes.rounds
    assert remarks(row) == [
        Remark(None, "lost", "a node failed: node lost"), Remark("0", "error", "TrainingError: nan")
    ]  # fmt: skip


def test_counts_that_are_restored_decide_as_if_there_had_been_no_break():
    whole, resumed = limited(0.3), limited(0.3)
    rounds_with(whole, [["0"], ["0", "3"]])
    _, vector, memory = whole.notes.checkpoints[-1]
    assert {k: int(v[0]) for k, v in memory.items()} == {REJECTED + "0": 2, REJECTED + "3": 1, UPLOADS: 10}
    resumed.strategy.restore(2, vector, memory)
    for server in (whole, resumed):
        rounds_with(server, [["0"]])
        with pytest.raises(RunError, match=r"7 of 20 uploads were rejected \(client 0: 4, client 3: 2"):
            rounds_with(server, [["0", "3", "4"]])
    assert whole.strategy.memory().keys() == resumed.strategy.memory().keys()


def test_nodes_that_are_refused_by_their_names_end_no_run_by_its_share_of_rejections():
    server = limited(0.0)
    for round_ in (1, 2, 3):
        server.ask(round_)
        server.take(uploads(server, some_updates(5)), round_=round_)
        for number in range(10):  # who come after the first round, with the name of a client that is there
            server.manager.register(Named(f"{round_}{number}", {"client": "0"}))
    first, *later = (remarks(row) for row in server.notes.rounds)
    assert first == []
    for number, refused in enumerate(later, 1):
        assert [remark.kind for remark in refused] == ["rejected"] * 10 * number
    assert len(server.notes.checkpoints) == 3
