"""Plans and audiences combine: groups whose split adapts, by themselves and after an interruption."""

import numpy as np
import pytest
from flwr.server.strategy import FedAvg
from memories import LAYOUT, A
from server_side import EVERYONE, Server, some_updates

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.adaptive import Importance, LeastVariance
from fedsa_lora.exchange.selection import TopK
from fedsa_lora.exchange.split import RoleSplit
from fedsa_lora.exchange.vector import read_array
from strategies import AdaptiveFedSA, Attendance, ClusteredFedSA, FedSA
from strategies.audience import Groups
from strategies.checkpoint import Checkpoint
from strategies.plans.grouping import Clusters

WAY = some_updates(1, LAYOUT.size)[0]
ODD, EVEN = {"1", "3", "5"}, {"0", "2", "4"}
TWO = Clusters(groups=2, after=1, ema=0.5)
SPLITS = {
    "importance": Importance(head="shared", ema=0.3, threshold="heterogeneity"),
    "importance by client": Importance(head="shared", ema=0.3, scope="client"),
    "least variance": LeastVariance(count=2, again=2, head="shared"),
}


def grouped(split, clusters: Clusters = TWO, **arguments) -> Server:
    return Server(LAYOUT, 6, ClusteredFedSA, split=split, clusters=clusters, **arguments)


def adaptive(split, **arguments) -> Server:
    return Server(LAYOUT, 6, AdaptiveFedSA, split=split, **arguments)


def answers(server: Server, round_: int, clients=None) -> dict:
    """Odd clients go the other way, each with noise and scores of its own."""
    results = {}
    for client in sorted(clients or server.asked):
        names = LAYOUT.named(server.asked[client].shared)
        index = LAYOUT.index(LAYOUT.select(names))
        way = WAY if index is None else WAY[index]
        rng = np.random.default_rng([round_, int(client)])
        update = (-1) ** int(client) * way + rng.normal(0, 0.1, way.size)
        told = {}
        if isinstance(server.strategy.split, Importance):
            told = {"scores": tuple(rng.random(len(A)).tolist())}
        results[client] = server.upload(client, update, 5 + 7 * int(client), **told)
    return results


def play(server: Server, rounds, clients=None) -> list[dict]:
    """The messages to each client in these rounds, with their headers."""
    found = []
    for round_ in rounds:
        messages = server.ask(round_)
        found.append({c: (ins.parameters.tensors, ins.config) for c, ins in messages.items()})
        server.take(answers(server, round_, clients), round_=round_)
    return found


@pytest.fixture(params=SPLITS)
def split(request):
    return SPLITS[request.param]


@pytest.mark.parametrize("codec", [None, TopK(ratio=0.4)], ids=["dense", "top-k"])
def test_one_group_is_adaptive_fedsa_to_the_bit_and_to_the_byte(split, codec):
    one, plain = grouped(split, Clusters(groups=1, after=1), codec=codec), adaptive(split, codec=codec)
    assert play(one, range(1, 6)) == play(plain, range(1, 6))
    assert np.array_equal(one.strategy.common, plain.strategy.common)
    rows = [[{k: row[k] for k in ("shared", "split")} for row in s.notes.rounds] for s in (one, plain)]
    assert rows[0] == rows[1]
    assert len({str(row) for row in rows[0]}) > 1, "the split changes"


def test_a_split_that_is_known_beforehand_gives_the_groups_of_clustered_fedsa_to_the_bit():
    split = RoleSplit(A="shared", B="local", head="shared")
    start = np.zeros(LAYOUT.size, np.float32)
    by_name = grouped(split, start=start)
    by_parts = Server(LAYOUT, 6, FedSA, split=split, audience=Groups(TWO, LAYOUT, start), start=start)
    assert play(by_name, range(1, 5)) == play(by_parts, range(1, 5))
    assert len(by_name.strategy.audience.downlinks) == 2


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_run_that_is_resumed_is_bit_identical_to_one_that_was_not_interrupted(split, stop):
    whole, first, resumed = grouped(split), grouped(split), grouped(split)
    expected = play(whole, range(1, 8))
    play(first, range(1, stop + 1))
    _, vector, memory = first.notes.checkpoints[-1]
    resumed.strategy.restore(stop, vector, {name: array.copy() for name, array in memory.items()})
    assert play(resumed, range(stop + 1, 8)) == expected[stop:]
    for one, two in zip(whole.notes.checkpoints[-1], resumed.notes.checkpoints[-1], strict=True):
        if isinstance(one, dict):
            assert one.keys() == two.keys()
            assert all(one[name].tobytes() == two[name].tobytes() for name in one)
        else:
            assert np.array_equal(one, two)
    assert len(whole.strategy.audience.downlinks) == 2


def test_each_group_is_adaptive_fedsa_among_its_members_where_a_client_alone_decides_its_split():
    split = SPLITS["importance by client"]
    server = grouped(split)
    play(server, [1])
    _, vector, memory = server.notes.checkpoints[-1]
    plan = {name: array for name, array in memory.items() if name.startswith(("plan/", "last/"))}
    expected = play(server, range(2, 6))
    for members in (ODD, EVEN):
        alone = adaptive(split, min_results=0.5)
        alone.strategy.restore(1, vector, plan)
        found = play(alone, range(2, 6), members)
        for one, other in zip(expected, found, strict=True):
            assert {c: one[c] for c in members} == {c: other[c] for c in members}


def test_groups_that_go_opposite_ways_do_not_disagree_within():
    """Updates of clients of different groups are never averaged: they are no reason to share less."""
    split = Importance(ema=0.0, threshold="heterogeneity")
    apart, mixed = grouped(split), adaptive(split)
    for server in (apart, mixed):
        play(server, [1, 2])
    assert apart.notes.rounds[0]["threshold"] == mixed.notes.rounds[0]["threshold"] > 0.5
    assert apart.notes.rounds[1]["threshold"] < 0.05 < 0.5 < mixed.notes.rounds[1]["threshold"]


def test_what_joins_keeps_the_value_of_a_client_whose_group_had_no_mean_in_that_round():
    split = Importance(ema=0.0, threshold=0.5)
    server = grouped(split, min_results=0.4, every=1)
    turns = {}
    for round_, scores in ((1, (1, 2, 3, 4)), (2, (4, 3, 2, 1)), (3, (4, 3, 2, 1))):
        server.ask(round_)
        turns[round_] = {c: LAYOUT.named(header.joining) for c, header in server.asked.items()}
        results = {}
        for client in EVEN if round_ == 3 else EVEN | ODD:
            size = LAYOUT.select(LAYOUT.named(server.asked[client].shared)).size
            update = np.full(size, -1.0 if client in ODD else 1.0)
            results[client] = server.upload(client, update, scores=scores)
        server.take(results, round_=round_)
    assert all(turns[3].values()), "what was low in the first round is high in the second"
    server.ask_to_evaluate(3)
    joining = {c: LAYOUT.named(header.joining) for c, header in server.asked.items()}
    assert {c for c, names in joining.items() if names} == ODD
    assert all(joining[c] == turns[3][c] for c in ODD)


@pytest.mark.parametrize("make", [grouped, adaptive], ids=["groups", "everyone"])
@pytest.mark.parametrize("last", [None, {"0"}, {"0", "2", "4"}], ids=["all", "too few", "one group"])
def test_a_checkpoint_knows_what_every_client_is_sent_when_the_last_round_is_evaluated(split, make, last):
    server = make(
        split, min_results=0.4, rounds=4, tell_total=True, attendance=Attendance(max_skipped=2),
        inner=FedAvg(**EVERYONE),
    )  # fmt: skip
    play(server, [1, 2, 3])
    play(server, [4], last)
    messages = server.ask_to_evaluate(4)
    round_, vector, memory = server.notes.checkpoints[-1]
    checkpoint = Checkpoint(split, LAYOUT, round_, vector, memory)
    for client, ins in messages.items():
        header = server.asked[client]
        turn = checkpoint.turn(client)
        assert (LAYOUT.mask(turn.shared), LAYOUT.mask(turn.joining)) == (header.shared, header.joining)
        held = read_array(ins.parameters.tensors, np.float32, 4 * LAYOUT.size)
        assert np.array_equal(checkpoint.held(client), held)
        assert bool(checkpoint.weight(client)) == bool(header.total)
    assert (server.strategy.attendance.skipped > 0) == (last == {"0"})


def test_a_downlink_beside_an_audience_that_brings_its_own_is_refused():
    audience = Groups(TWO, LAYOUT, np.zeros(LAYOUT.size, np.float32))
    with pytest.raises(ConfigError, match="give one of the two"):
        Server(LAYOUT, 3, audience=audience, downlink=TopK(ratio=0.4))
