"""ClusteredFedSA: each group is a federation of its own, and what is sent to whom."""

import numpy as np
import pytest
from flwr.server.strategy import FedAvg, FedAvgM, FedMedian, FedProx
from server_side import EVERYONE, LAYOUT, SHARE_A, Server, some_updates

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.codec import Dense
from fedsa_lora.exchange.selection import Threshold, TopK
from fedsa_lora.exchange.split import RoleSplit
from fedsa_lora.exchange.vector import read_array
from strategies import ClusteredFedSA, FedEx, FedSA
from strategies.audience import GROUP, held_by
from strategies.plans.grouping import Clusters
from strategies.round.traffic import message_bytes

WAY = some_updates(1)[0]
ODD = {"1", "3", "5"}
TWO = Clusters(groups=2, after=1, ema=0.5)


def clustered(clients: int = 6, settings: Clusters = TWO, **arguments) -> Server:
    return Server(clients=clients, kind=ClusteredFedSA, clusters=settings, **arguments)


def opposite(round_: int, clients: int = 6) -> dict[str, np.ndarray]:
    """Odd clients go the other way; each has noise of its own."""
    noise = some_updates(clients, seed=round_)
    return {str(n): (-WAY if n % 2 else WAY) + 0.1 * noise[n] for n in range(clients)}


def vectors(sent) -> dict[str, np.ndarray]:
    """What was sent to each client."""
    return {c: read_array(i.parameters.tensors, np.float32, 4 * LAYOUT.size) for c, i in sent.items()}


def test_clients_of_opposite_updates_share_with_their_own_from_the_round_after():
    server = clustered()
    for round_ in (1, 2, 3):
        server.play(round_, opposite(round_))
    groups = {client: server.strategy.audience.grouping.of(client) for client in "012345"}
    assert {c for c, number in groups.items() if number == groups["1"]} == ODD
    held = vectors(server.ask(4))
    assert all(np.array_equal(held[c], held["1"]) for c in ODD)
    assert all(np.array_equal(held[c], held["0"]) for c in "24")
    assert (held["0"] - server.start) @ WAY > 0 > (held["1"] - server.start) @ WAY


def test_each_group_is_a_plain_federation_of_its_members_to_the_bit():
    """From the split on, FedSA among a group's clients alone makes the same values."""
    server = clustered()
    server.play(1, opposite(1))
    start = server.strategy.common
    alone = {}
    for name, members in {"odd": ODD, "even": set("024")}.items():
        alone[name] = Server(clients=6, start=start, min_results=0.5), members
    weights = {str(n): 5 + 7 * n for n in range(6)}
    for round_ in (2, 3, 4):
        updates = opposite(round_)
        server.ask(round_)
        server.take({c: server.upload(c, u, weights[c]) for c, u in updates.items()}, round_=round_)
        for plain, members in alone.values():
            plain.ask(round_)
            answers = {c: plain.upload(c, updates[c], weights[c]) for c in sorted(members)}
            plain.take(answers, round_=round_)
    held = vectors(server.ask(5))
    for plain, members in alone.values():
        assert all(np.array_equal(held[c], plain.strategy.common) for c in members)


CODECS = [Dense(), Dense(values="int8"), TopK(ratio=0.3, values="int8"), Threshold(threshold=0.5)]


@pytest.mark.parametrize("inner", [FedAvg(**EVERYONE), FedProx(proximal_mu=0.5, **EVERYONE)])
@pytest.mark.parametrize("codec", CODECS)
def test_one_group_is_fedsa_to_the_bit_and_to_the_byte(inner, codec):
    one = clustered(settings=Clusters(groups=1, after=1), inner=inner, codec=codec)
    plain = Server(clients=6, inner=inner, codec=codec)
    for round_ in (1, 2, 3):
        sent = [server.play(round_, opposite(round_)) for server in (one, plain)]
        assert np.array_equal(one.strategy.common, plain.strategy.common)
        for client in "012345":
            first, second = (messages[client] for messages in sent)
            assert (first.parameters.tensors, first.config) == (second.parameters.tensors, second.config)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups_cost_no_byte(groups):
    server, plain = clustered(settings=Clusters(groups=groups, after=1)), Server(clients=6)
    for round_ in (1, 2, 3):
        sizes = []
        for each in (server, plain):
            sent = each.play(round_, opposite(round_))
            up = {c: message_bytes(each.upload(c, u)) for c, u in opposite(round_).items()}
            sizes.append(({c: message_bytes(ins) for c, ins in sent.items()}, up))
        assert sizes[0] == sizes[1]
    assert server.strategy.audience.downlinks.keys() == set(range(groups))


def test_a_sparse_codec_finds_the_same_groups():
    server = clustered(codec=TopK(ratio=0.3))
    for round_ in (1, 2):
        server.play(round_, opposite(round_))
    groups = server.strategy.audience.grouping.members
    assert {c for c, number in groups.items() if number == groups["1"]} == ODD


def test_clients_are_compared_by_a_alone_where_it_is_shared_and_a_head_is_averaged_in_its_group():
    """Heads that tell other families change nothing; count-weighted rows are those of the group."""
    layout = Layout((*LAYOUT, TensorSpec("classifier.weight", (2, 3), "head", "classifier")))
    split = RoleSplit(A="shared", B="local", head="shared")
    server = Server(
        layout, 4, ClusteredFedSA, split=split, classes=2, clusters=Clusters(groups=2, after=1, ema=0.0)
    )
    heads = dict(zip("0123", some_updates(4, 6, 9), strict=True))
    counts = {"0": (8, 2), "1": (3, 7), "2": (0, 10), "3": (10, 0)}
    place = layout.span("classifier.weight")

    def update(client: str, round_: int) -> np.ndarray:
        vector = np.zeros(layout.size, np.float32)
        index = layout.index(layout.select(LAYOUT.names))
        vector[index] = opposite(round_)[client]
        vector[place] = 100 * (heads["0"] if client in "01" else heads["2"]) + heads[client]
        return vector

    for round_ in (1, 2):
        before = {c: server.strategy.audience.downlink(c).held for c in "0123"}
        server.ask(round_)
        server.take({c: server.upload(c, update(c, round_), counts=counts[c]) for c in "0123"}, round_=round_)
    assert server.strategy.audience.grouping.of("0") == server.strategy.audience.grouping.of("2")
    assert server.strategy.audience.grouping.of("1") == server.strategy.audience.grouping.of("3")
    for pair in (("0", "2"), ("1", "3")):
        n = np.array([counts[c] for c in pair]) + 1e-3
        rows = np.stack([update(c, 2)[place].reshape(2, 3) for c in pair])
        mean = ((n / n.sum(axis=0))[:, :, None] * rows).sum(axis=0)
        now = server.strategy.audience.downlink(pair[0]).held - before[pair[0]]
        np.testing.assert_allclose(now[place].reshape(2, 3), mean, rtol=1e-4, atol=1e-3)


def test_who_was_not_sampled_keeps_its_group_and_who_never_was_is_sent_that_of_most():
    inner = FedAvg(fraction_fit=0.5, **EVERYONE)
    server = clustered(8, Clusters(groups=2, after=1, ema=0.0), inner=inner)
    seen: set[str] = set()
    for round_ in range(1, 9):
        sampled = server.ask(round_).keys()
        before = dict(server.strategy.audience.grouping.members)
        updates = opposite(round_, 8)
        server.take({c: server.upload(c, updates[c]) for c in sorted(sampled)}, round_=round_)
        seen |= sampled
        held = vectors(server.ask_to_evaluate(99))
        members = server.strategy.audience.grouping.members
        assert members.keys() == seen
        assert {c: members[c] for c in before.keys() - sampled} == {
            c: number for c, number in before.items() if c not in sampled
        }
        for client in held.keys() - seen:
            assert np.array_equal(held[client], server.strategy.common)
        odd = {c for c in seen if int(c) % 2}
        assert {members[c] for c in odd}.isdisjoint({members[c] for c in seen - odd})
        if seen >= set("01234567"):
            break
    assert round_ > 1
    assert len(seen) == 8


def test_the_round_says_who_is_with_whom_and_the_checkpoint_what_each_holds():
    server = clustered(5, Clusters(groups=2, after=2), every=1)
    for round_ in (1, 2, 3):
        server.ask(round_)
        updates = opposite(round_, 5)
        server.take({c: server.upload(c, updates[c]) for c in "01234"}, round_=round_)
        held = vectors(server.ask_to_evaluate(round_))
        server.strategy.ledger.close(evaluated=True)
        memory = server.notes.checkpoints[-1][2]
        for client in "01234":
            own = held_by(client, server.notes.checkpoints[-1][1], memory)
            assert np.array_equal(held[client], own)
    first, *later = server.notes.rounds
    assert (first["groups"], first["group_sizes"]) == (dict.fromkeys("01234", 0), {"0": 5})
    for row in later:
        assert (row["groups"], row["group_sizes"]) == (
            {"0": 0, "1": 1, "2": 0, "3": 1, "4": 0},
            {"0": 3, "1": 2},
        )
    assert np.array_equal(memory[f"{GROUP}0"], server.strategy.common)
    assert {name for name in memory if name.startswith(GROUP)} == {f"{GROUP}0", f"{GROUP}1"}
    state = server.strategy.audience.grouping.state()
    assert all(memory[name].tobytes() == array.tobytes() for name, array in state.items())
    assert held_by("7", server.start, {}) is server.start


def test_a_group_of_which_nobody_was_there_stands_still():
    server = clustered(min_results=0.4)
    for round_ in (1, 2):
        server.play(round_, opposite(round_))
    before = vectors(server.ask(3))
    server.take({c: server.upload(c, opposite(3)[c]) for c in "024"}, round_=3)
    after = vectors(server.ask(4))
    assert all(np.array_equal(after[c], before[c]) for c in ODD)
    assert not np.array_equal(after["0"], before["0"])


REFUSED = {
    "momentum": ({"inner": FedAvgM(**EVERYONE)}, "FedAvgM"),
    "a rule that compares": ({"inner": FedMedian(**EVERYONE)}, "FedMedian"),
    "a rule for factors": ({"inner": FedEx(**EVERYONE)}, "FedEx"),
    "coded broadcasts": ({"downlink": Dense()}, "downlink=whole"),
    "nothing to share": ({"layout": Layout(())}, "share nothing"),
}


@pytest.mark.parametrize(("arguments", "said"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_with_groups_is_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        clustered(**arguments)
    assert isinstance(clustered(split=SHARE_A).strategy, FedSA)
