"""What clients hold of the common values: what the server thinks, to the bit, whatever they missed."""

import numpy as np
import pytest
from flwr.common import parameters_to_ndarrays
from hypothesis import given, settings
from hypothesis import strategies as st
from server_side import SHARE_AB, Server, some_updates

from fedsa_lora.client.personal import HELD, MERGED, Received, receive
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.codec import Dense
from fedsa_lora.exchange.selection import RandomK, Threshold, TopK
from fedsa_lora.store import ClientState
from strategies import FedEx, FLoRA
from strategies.round.downlink import MERGED_A, MERGED_B, Downlink
from strategies.round.traffic import message_bytes
from strategies.rules.factors import Factors

LAYOUT = Layout(
    (
        *(TensorSpec(f"{layer}.lora_A.weight", (2, 9), "A", layer) for layer in "xy"),
        *(TensorSpec(f"{layer}.lora_B.weight", (7, 2), "B", layer) for layer in "xy"),
    )
)
ALL, SIZE = frozenset(LAYOUT.names), LAYOUT.size
START = some_updates(1, SIZE, 5)[0]
CODECS = {
    "none": None,
    "dense": Dense(),
    "int8": Dense(values="int8"),
    "top_k": TopK(ratio=0.1),
    "top_k int8": TopK(ratio=0.3, values="int8"),
    "random_k": RandomK(ratio=0.3),
    "threshold": Threshold(threshold=0.5),
}


class Client:
    """The real reading of broadcasts, and what a client would then store."""

    def __init__(self, codec) -> None:
        self.codec, self.state = codec, None

    def read(self, arrays, header) -> Received:
        return receive(header, list(arrays), LAYOUT, ALL, self.state, self.codec)

    def take_part(self, round_: int, received: Received) -> None:
        merged = {MERGED + layer: array for layer, array in received.merged.items()}
        self.state = ClientState(round_, {}, {HELD: received.common} | merged)


def sent(downlink: Downlink, client: str, round_: int) -> tuple[list, wire.BroadcastHeader]:
    sending = downlink.sending(client)
    return sending.arrays, wire.BroadcastHeader(round=round_, shared="0", **sending.fields)


def moved(vector: np.ndarray, seed: int) -> np.ndarray:
    """The vector after a round in which some tensors change, or none."""
    rng, after = np.random.default_rng(seed), vector.copy()
    for name in LAYOUT.names:
        if rng.random() < 0.5:
            after[LAYOUT.span(name)] += rng.normal(size=LAYOUT.select([name]).size)
    return after


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(CODECS)), st.integers(0, 2**16), st.lists(st.sets(st.integers(0, 2)), max_size=7)
)
def test_every_client_holds_what_the_server_thinks_to_the_bit(name, seed, took_part):
    codec, vector = CODECS[name], START
    downlink, clients = Downlink(LAYOUT, START, codec, 0), [Client(codec) for _ in range(3)]
    for round_, who in enumerate(took_part, 1):
        received = [c.read(*sent(downlink, str(i), round_)) for i, c in enumerate(clients)]
        assert all(np.array_equal(r.common, downlink.held) for r in received)
        for i in who:
            clients[i].take_part(round_, received[i])
        vector = moved(vector, seed + round_)
        downlink.publish(round_, vector, {}, map(str, who))
        if codec is None:
            assert np.array_equal(downlink.held, vector)
        if codec == Dense():
            np.testing.assert_allclose(downlink.held, vector, rtol=0, atol=1e-6)
    for i, client in enumerate(clients):
        assert np.array_equal(client.read(*sent(downlink, str(i), 99)).common, downlink.held)


def test_without_a_codec_every_broadcast_is_whole():
    downlink = Downlink(LAYOUT, START, None, 0)
    for round_ in (1, 2, 3):
        (vector,), header = sent(downlink, "0", round_)
        assert np.array_equal(vector, downlink.held)
        assert (header.base, header.codec, header.carried) == (0, "", LAYOUT.mask(ALL))
        downlink.publish(round_, moved(vector, round_), {}, ["0"])


def test_a_change_carries_only_the_tensors_that_changed_and_a_whole_one_goes_to_all_others():
    downlink = Downlink(LAYOUT, START, Dense(), 0)
    name, after = LAYOUT.names[1], START.copy()
    after[LAYOUT.span(name)] += 1
    downlink.publish(1, after, {}, ["0"])
    (payload,), header = sent(downlink, "0", 2)
    assert (header.base, wire.names_of(header.carried, LAYOUT)) == (1, {name})
    np.testing.assert_allclose(payload, 1, atol=1e-6)
    (whole,), header = sent(downlink, "1", 2)
    assert (header.base, header.codec, whole.size) == (0, "", SIZE)
    downlink.publish(2, downlink.held, {}, ["0"])
    (payload,), header = sent(downlink, "0", 3)
    assert (header.base, header.carried, payload.size) == (2, "0", 0)


@pytest.mark.parametrize(
    ("name", "rounds"), [("top_k", 10), ("random_k", 40), ("top_k int8", 40), ("int8", 9)]
)
def test_what_a_change_left_out_follows_later(name, rounds):
    """Nothing is lost: while the server's vector stands still, what clients hold goes to it."""
    downlink, goal = Downlink(LAYOUT, START, CODECS[name], 0), START + some_updates(1, SIZE, 6)[0]
    downlink.publish(1, goal, {}, [])
    first = np.abs(downlink.held - goal).max()
    for round_ in range(2, rounds + 1):
        downlink.publish(round_, goal, {}, [])
    assert np.abs(downlink.held - goal).max() < 1e-5 < 1e-3 < first


def product(arrays, layer: str) -> np.ndarray:
    return arrays[f"{layer}.lora_B.weight"].astype(float) @ arrays[f"{layer}.lora_A.weight"]


def some_factors(seed: int) -> dict[str, Factors]:
    rng = np.random.default_rng(seed)
    return {
        layer: Factors(*(rng.normal(size=s).astype(np.float32) for s in ((3, 9), (7, 3))))
        for layer in ("xy", "x")[seed % 2]
    }


@pytest.mark.parametrize("name", ["none", "dense", "top_k"])
def test_a_client_that_follows_and_one_that_catches_up_merge_the_same(name):
    downlink, expected = Downlink(LAYOUT, START, CODECS[name], 0), {layer: np.zeros((7, 9)) for layer in "xy"}
    follower, late = Client(CODECS[name]), Client(CODECS[name])
    for round_ in range(1, 6):
        for client, here in ((follower, True), (late, round_ == 3)):
            if here:
                received = client.read(*sent(downlink, "0" if client is follower else "1", round_))
                client.take_part(round_, received)
        merge = some_factors(round_)
        downlink.publish(round_, START, merge, ["0", "1"] if round_ == 3 else ["0"])
        for layer, factors in merge.items():
            expected[layer] += factors.B.astype(float) @ factors.A
    (_, step), _ = sent(downlink, "0", 6)
    (_, everything), _ = sent(downlink, "1", 6)
    assert step.size < everything.size, "who follows is sent the last step alone"
    for client, who in ((follower, "0"), (late, "1"), (Client(CODECS[name]), "2")):
        merged = client.read(*sent(downlink, who, 6)).merged
        for layer in "xy":
            np.testing.assert_allclose(merged[layer], expected[layer], rtol=0, atol=1e-5)


@pytest.mark.parametrize("downlink", [None, Dense()], ids=["whole", "dense"])
@pytest.mark.parametrize("rule", [FedEx, lambda: FLoRA(seed=0)], ids=["FedEx", "FLoRA"])
def test_what_clients_merge_and_hold_is_the_mean_of_their_products(rule, downlink):
    """W0 + B A after a round is W0 + sum p_k B_k A_k of it, on the server and on every client."""
    weights = {"0": 0.05, "1": 0.2, "2": 0.75}
    server = Server(LAYOUT, 3, inner=rule(), split=SHARE_AB, downlink=downlink, start=START)
    clients = {c: Client(downlink) for c in weights}
    expected = {layer: product(LAYOUT.unpack(START), layer) for layer in "xy"}
    for round_ in (1, 2, 3, 4):
        received, ended = {}, {}
        updates = dict(zip(weights, some_updates(3, SIZE, round_), strict=True))
        for client, ins in server.ask(round_).items():
            arrays = parameters_to_ndarrays(ins.parameters)
            received[client] = clients[client].read(arrays, server.asked[client])
            clients[client].take_part(round_, received[client])
            ended[client] = LAYOUT.unpack(received[client].common + updates[client])
            for layer in "xy":
                adapted = product(LAYOUT.unpack(received[client].common), layer)
                whole = received[client].merged.get(layer, 0) + adapted
                np.testing.assert_allclose(whole, expected[layer], rtol=0, atol=1e-5)
        for layer in "xy":
            mean = sum(w * product(ended[c], layer) for c, w in weights.items())
            expected[layer] = received["0"].merged.get(layer, 0) + mean
        results = {c: server.upload(c, u, int(100 * weights[c])) for c, u in updates.items()}
        after = LAYOUT.unpack(server.take(results, round_=round_))
        memory = server.notes.checkpoints[-1][2]
        assert (HELD in memory) == (downlink is not None)
        for layer in "xy":
            merged = memory[MERGED_B + layer] @ memory[MERGED_A + layer]
            np.testing.assert_allclose(merged + product(after, layer), expected[layer], rtol=0, atol=1e-5)


def test_bytes_are_counted_for_each_client_as_its_message_is():
    server = Server(LAYOUT, 3, split=SHARE_AB, downlink=TopK(ratio=0.1), start=START)
    server.ask(1)
    server.take({c: server.upload(c, u) for c, u in zip("012", some_updates(3, SIZE), strict=True)})
    first = server.notes.rounds[-1]["bytes_down"]
    server.strategy.min_results = 0.5
    server.play(2, dict(zip("01", some_updates(2, SIZE), strict=True)))
    sizes = {client: message_bytes(ins) for client, ins in server.ask(3).items()}
    assert sizes["0"] == sizes["1"] < sizes["2"] - 3 * SIZE
    server.take({c: server.upload(c, some_updates(1, SIZE)[0]) for c in "012"}, round_=3)
    assert server.notes.rounds[-1]["bytes_down"] == sum(sizes.values()) < first
    last = {row["client"]: row["bytes_down"] for row in server.notes.clients}
    assert last == sizes
