"""Splits that the server decides from reports: what is announced, recorded, refused and remembered."""

import numpy as np
import pytest
from flwr.server.strategy import FedAvg, FedMedian, Krum
from remarks import failures_of
from server_side import EVERYONE, SHARE_A, Server, some_updates

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.adaptive import Importance, LeastVariance
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.codec import Dense
from fedsa_lora.exchange.selection import TopK
from strategies import AdaptiveFedSA, FedEx, FedSA, TopKFedSA
from strategies.plans.importance import ByImportance

A = [f"encoder.layer.{i}.query.lora_A.weight" for i in range(4)]
HEAD = "classifier.weight"
LAYOUT = Layout(
    (
        *(TensorSpec(name, (2, 5), "A", name.removesuffix(".lora_A.weight")) for name in A),
        TensorSpec(HEAD, (3, 4), "head", "classifier"),
    )
)
POOL = LAYOUT.select(A)
RISING, FALLING = (1.0, 2.0, 3.0, 4.0), (4.0, 3.0, 2.0, 1.0)


def adaptive(split=None, clients: int = 3, **arguments) -> Server:
    split = split or Importance(head="shared", ema=0.0)
    return Server(LAYOUT, clients, AdaptiveFedSA, split=split, **arguments)


def asked(server: Server) -> dict[str, tuple[set[str], set[str]]]:
    """What clients were last asked to share, and which of it joins."""
    return {
        client: (wire.names_of(header.shared, LAYOUT), wire.names_of(header.joining, LAYOUT))
        for client, header in server.asked.items()
    }


def play(server: Server, round_: int, scores=None, clients: str | None = None, **changes) -> dict:
    """A round in which these clients answer, all without a word, each with its scores. What all were
    asked for."""
    server.ask(round_)
    found = asked(server)
    results = {}
    for client in clients or found:
        size = LAYOUT.select(found[client][0]).size
        update = some_updates(1, size, 10 * round_ + int(client))[0]
        told = {} if scores is None else {"scores": scores.get(client, RISING)}
        results[client] = server.upload(client, update, **(told | changes.get(client, {})))
    server.take(results, round_=round_)
    return found


def test_the_announced_split_is_the_plans_and_is_recorded():
    server = adaptive()
    scores = {"0": RISING, "1": FALLING, "2": (9.0, 1.0, 9.0, 1.0)}
    assert play(server, 1, scores) == dict.fromkeys("012", (set(LAYOUT.names), set()))
    before = server.strategy.common
    plan = ByImportance(server.strategy.split, POOL)
    plan.hear(scores, dict.fromkeys("012", 10.0), {})
    expected = plan.shared("") | {HEAD}
    assert expected == {A[0], A[2], HEAD}, "the mean of the scores is 14, 6, 14, 6"
    assert play(server, 2, scores) == dict.fromkeys("012", (expected, set()))
    for name in LAYOUT.names:
        moved = not np.array_equal(server.strategy.common[LAYOUT.span(name)], before[LAYOUT.span(name)])
        assert moved == (name in expected)
    one, two = server.notes.rounds
    assert (one["split"], two["split"]) == (sorted(LAYOUT.names), sorted(expected))
    assert (one["threshold"], two["shared"]) == (0.5, LAYOUT.select(expected).size)


def test_what_comes_back_joins_for_those_who_had_it_to_themselves():
    server = adaptive(min_results=0.5)
    play(server, 1, dict.fromkeys("012", RISING))
    play(server, 2, dict.fromkeys("01", FALLING), clients="01")
    upper, lower = {A[2], A[3], HEAD}, {A[0], A[1], HEAD}
    assert play(server, 3, dict.fromkeys("012", FALLING)) == {
        "0": (lower, {A[0], A[1]}),
        "1": (lower, {A[0], A[1]}),
        "2": (lower, set()),  # it last took part when all was shared
    }
    server.strategy.evaluation = type(server.strategy.evaluation)(rounds=99, every=1)
    server.ask_to_evaluate(3)
    assert asked(server) == dict.fromkeys("012", (lower, set())), "there is a common value by then"
    assert server.notes.rounds[1]["split"] == sorted(upper)


def test_each_client_has_a_split_of_its_own_in_scope_client():
    server = adaptive(Importance(scope="client", ema=0.0))
    scores = {"0": RISING, "1": FALLING, "2": RISING}
    play(server, 1, scores)
    upper, lower = frozenset({A[2], A[3], HEAD}), frozenset({A[0], A[1], HEAD})
    assert {c: shared for c, (shared, _) in play(server, 2, scores).items()} == {
        "0": upper, "1": lower, "2": upper,
    }  # fmt: skip
    assert server.notes.rounds[-1]["split"] == {
        "0": LAYOUT.mask(upper), "1": LAYOUT.mask(lower), "2": LAYOUT.mask(upper),
    }  # fmt: skip


def test_least_variance_shares_all_while_it_measures_and_then_the_layers_that_agree():
    server = adaptive(LeastVariance(count=1, head="shared"))
    server.ask(1)
    agreeing = some_updates(3, LAYOUT.size)
    for update in agreeing:
        update[LAYOUT.span(A[2])] = 1.0
    server.take({c: server.upload(c, u) for c, u in zip("012", agreeing, strict=True)})
    assert play(server, 2) == dict.fromkeys("012", ({A[2], HEAD}, set()))
    assert play(server, 3) == dict.fromkeys("012", ({A[2], HEAD}, set()))


@pytest.mark.parametrize("scores", [(), (1.0,) * 3, (1.0,) * 5])
def test_another_number_of_scores_than_of_tensors_is_rejected_and_named(scores):
    server = adaptive(min_results=0.5)
    play(server, 1, {"0": scores, "1": RISING, "2": RISING})
    (row,) = server.notes.rounds
    assert failures_of(row) == [f"client 0: contains {len(scores)} importance scores, expected 4"]
    assert play(server, 2, {})["0"][0] == {A[2], A[3], HEAD}, "the scores of the others count"


def test_scores_that_nobody_asked_for_are_rejected():
    server = adaptive(LeastVariance(), min_results=0.5)
    play(server, 1, **{"0": {"scores": RISING}})
    assert failures_of(server.notes.rounds[0]) == ["client 0: contains 4 importance scores, expected 0"]


def test_a_client_that_shares_what_it_was_not_asked_for_is_rejected():
    server = adaptive(min_results=0.5)
    play(server, 1, {})
    stale = {"shared": LAYOUT.mask(LAYOUT.names), "payload": np.ones(LAYOUT.size, np.float32)}
    play(server, 2, {}, **{"1": stale})
    (failure,) = failures_of(server.notes.rounds[1])
    assert failure.startswith("client 1: shares other tensors than requested; the difference is")
    assert A[0] in failure
    assert A[1] in failure


@pytest.mark.parametrize(
    "split",
    [
        Importance(ema=0.3, hysteresis=2, margin=0.1, threshold="heterogeneity"),
        Importance(ema=0.6, scope="client"),
        LeastVariance(count=2, again=2),
    ],
    ids=["importance", "importance by client", "least variance"],
)
def test_the_memory_of_a_checkpoint_is_all_that_the_next_split_depends_on(split):
    server = adaptive(split)
    rng = np.random.default_rng(0)
    for round_ in range(1, 4):
        scores = {c: tuple(rng.random(4).tolist()) for c in "012"}
        found = play(server, round_, scores if isinstance(split, Importance) else None)
    memory = server.notes.checkpoints[-1][2]
    again = adaptive(split)
    again.strategy.plan.restore(memory)
    assert again.strategy.plan.turns(4, "012") == server.strategy.plan.turns(4, "012")
    for client in "012":
        shared = {n for n, one in zip(LAYOUT.names, memory[f"shared/{client}"], strict=True) if one}
        assert shared == found[client][0]
    state = again.strategy.plan.state()
    assert state.keys() == {name for name in memory if name.startswith(("plan/", "last/"))}
    assert all(np.array_equal(array, memory[name]) for name, array in state.items())


def test_a_checkpoint_knows_the_split_of_clients_that_were_not_sampled_as_well():
    server = adaptive(inner=FedAvg(fraction_fit=0.34, **EVERYONE))
    assert len(play(server, 1, {})) == 1
    memory = server.notes.checkpoints[-1][2]
    assert {name for name in memory if name.startswith("shared/")} == {f"shared/{c}" for c in "012"}


def test_a_split_that_does_not_adapt_is_refused():
    with pytest.raises(ConfigError, match="AdaptiveFedSA needs an adaptive split, got RoleSplit"):
        adaptive(SHARE_A)


@pytest.mark.parametrize(
    ("inner", "codec", "what"),
    [
        (FedAvg(), Dense(), "needs a sparse codec, got 'dense fp32': use FedSA"),
        (FedAvg(), TopK(ratio=1.0), "needs a sparse codec, got 'top_k 1.0 fp32'"),
        (Krum(), TopK(ratio=0.1), "cannot hand sparse updates to Krum.*expected one of FedAvg, FedProx"),
        (FedMedian(), TopK(ratio=0.1), "cannot hand sparse updates to FedMedian"),
        (FedEx(), TopK(ratio=0.1), "cannot hand sparse updates to FedEx"),
    ],
)
def test_topk_fedsa_refuses_what_it_cannot_keep_sparse(inner, codec, what):
    with pytest.raises(ConfigError, match=f"TopKFedSA {what}"):
        Server(LAYOUT, 3, TopKFedSA, inner=inner, codec=codec)


def test_topk_fedsa_gives_what_fedsa_does_to_the_bit_and_never_makes_an_update_dense(monkeypatch):
    def play(kind) -> np.ndarray:
        server = Server(LAYOUT, 3, kind, inner=FedAvg(**EVERYONE), codec=TopK(ratio=0.2))
        for round_ in (1, 2):
            server.play(round_, dict(zip("012", some_updates(3, POOL.size, round_), strict=True)))
        return server.strategy.common

    expected = play(FedSA)
    monkeypatch.setattr(
        "strategies.rules.updates.Update.dense", lambda *_: pytest.fail("an update was made dense")
    )
    assert np.array_equal(play(TopKFedSA), expected)
