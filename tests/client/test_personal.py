"""What a broadcast means to a client, and the model that it makes of what is common and what is its own."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.client.personal import (
    COMMON,
    HELD,
    MERGED,
    PERSONAL,
    RESIDUAL,
    START,
    TRAINED,
    Received,
    others,
    personal,
    receive,
)
from fedsa_lora.errors import SplitError, WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.broadcast import adapted
from fedsa_lora.exchange.codec import Dense
from fedsa_lora.exchange.selection import RandomK, Threshold, TopK
from fedsa_lora.exchange.split import Alternate, RoleSplit, Turn
from fedsa_lora.exchange.vector import vector_digest
from fedsa_lora.store import ClientState
from strategies.round.downlink import Downlink
from strategies.rules.factors import Factors

LAYOUT = Layout(
    (
        TensorSpec("0.A", (2, 3), "A", "0"),
        TensorSpec("0.B", (4, 2), "B", "0"),
        TensorSpec("1.A", (2, 5, 1, 2), "A", "1"),
        TensorSpec("1.B", (3, 2, 1, 1), "B", "1"),
        TensorSpec("head", (3, 4), "head", "head"),
    )
)
FACTORS = LAYOUT.select(["0.A", "0.B", "1.A", "1.B"])
BOTH = ("A", "B")
FEDIT = RoleSplit(A="shared", B="shared", allow=BOTH)
ALL = frozenset(FACTORS.names)


def vector(seed: int, size: int = FACTORS.size) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def arrays(seed: int) -> dict[str, np.ndarray]:
    return LAYOUT.unpack(vector(seed, LAYOUT.size))


START_ = vector(0)
INITIAL = arrays(99)


def whole(values=START_, *more, **changes) -> tuple[wire.BroadcastHeader, list[np.ndarray]]:
    everything = FACTORS.mask(FACTORS.names)
    digest = vector_digest(values, *more)
    header = wire.BroadcastHeader(3, FACTORS.digest, digest, shared=everything, carried=everything)
    return replace(header, **changes), [values, *more]


def read(message, state=None, downlink=None, allowed=ALL) -> Received:
    return receive(*message, FACTORS, allowed, state, downlink)


def test_a_whole_broadcast_is_held_as_it_is():
    received = read(whole(shared=FACTORS.mask(["0.A"]), joining=FACTORS.mask(["0.A"])))
    assert received.turn == Turn(frozenset({"0.A"}), frozenset({"0.A"}))
    assert received.common.tobytes() == START_.tobytes()
    assert received.merged == {}


def test_what_is_asked_for_and_not_allowed_is_refused_by_name():
    with pytest.raises(SplitError, match=r"asks for \['0\.B', '1\.B'\], which this client does not share"):
        read(whole(), allowed=frozenset({"0.A", "1.A"}))
    assert read(whole(shared=FACTORS.mask(["0.A"])), allowed=frozenset({"0.A", "1.A"}))


MERGE = 2 * (4 + 3) + 1 * (3 + 10)  # values of factors of rank 2 for layer 0 and of rank 1 for layer 1


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (whole(layout="0" * 16), "tensors of layout"),
        (whole(digest="0" * 32), "modified or truncated"),
        (whole(START_[:-1]), "expected float32"),
        (whole(np.full_like(START_, np.nan)), "NaN"),
        (whole(shared="fff"), "does not name tensors"),
        (whole(joining="-1"), "does not name tensors"),
        (whole(carried="1"), "a full broadcast must contain every tensor"),
        (whole(START_, START_), "expected 1 arrays, got 2"),
        ((whole()[0], []), "expected 1 arrays, got 0"),
        (whole(merge=(1, 1)), "expected 2 arrays, got 1"),
        (whole(START_, vector(1, MERGE), merge=(2,)), "factors for 1 layers, expected 2"),
        (whole(START_, vector(1, MERGE), merge=(2, 1, 0)), "factors for 3 layers, expected 2"),
        (whole(START_, vector(1, MERGE), merge=(2, 2)), "expected float32"),
        (whole(START_, vector(1, MERGE), merge=(10**15, 10**15)), "expected float32"),
        (whole(START_, np.full(MERGE, np.inf, np.float32), merge=(2, 1)), "infinite"),
        ((whole()[0], [START_, START_]), "expected 1 arrays"),
        (whole(base=2), "is a difference to that of round 2"),
        (whole(codec="dense fp32"), "coded by 'dense fp32', this client reads none"),
    ],
)
def test_a_broadcast_that_fits_not_is_refused_with_what_is_wrong(message, said):
    with pytest.raises(WireError, match=said):
        read(message)


def test_merged_factors_are_products_by_layer_added_to_those_of_a_known_base_alone():
    factors, before = vector(1, MERGE), {"1": np.ones((3, 10), np.float32)}
    state = ClientState(2, {}, {MERGED + layer: array for layer, array in before.items()})
    expected = {
        "0": factors[:8].reshape(4, 2) @ factors[8:14].reshape(2, 3),
        "1": factors[14:17].reshape(3, 1) @ factors[17:].reshape(1, 10),
    }
    fresh = read(whole(START_, factors, merge=(2, 1)), state).merged
    added = read(whole(START_, factors, merge=(2, 1), base=2), state).merged
    assert adapted(FACTORS) == {"0": (4, 3), "1": (3, 10)}
    assert fresh.keys() == added.keys() == expected.keys()
    for layer in expected:
        np.testing.assert_array_equal(fresh[layer], expected[layer])
        np.testing.assert_array_equal(added[layer], expected[layer] + before.get(layer, np.float32(0)))
    kept = read(whole(base=2), state).merged
    assert kept.keys() == before.keys(), "a change without factors leaves what was merged"
    none = read(whole(START_, vector(1, 14), merge=(2, 0))).merged
    assert none["0"].all()
    assert not none["1"].any()


CODECS = [
    Dense(),
    Dense(values="int8"),
    TopK(0.1, values="int8"),
    RandomK(0.3),
    Threshold(1.0),
    TopK(1.0, values="int4"),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_changes_keep_a_client_that_takes_part_at_the_servers_vector_to_the_bit(codec):
    """Between the rounds of one that misses some, and is sent the whole."""
    server, states = Downlink(FACTORS, START_, codec, seed=0), {"always": None, "at times": None}
    factors = {"1": Factors(vector(5, 10).reshape(1, 10), vector(6, 3).reshape(3, 1))}
    for round_ in range(1, 6):
        present = [name for name in states if name == "always" or round_ in (1, 2, 5)]
        for name in present:
            sending = server.sending(name)
            everything = FACTORS.mask(FACTORS.names)
            header = wire.BroadcastHeader(round=round_, shared=everything, **sending.fields)
            assert bool(header.base) == (round_ > 1 and (name == "always" or round_ == 2))
            found = read((header, sending.arrays), states[name], codec)
            assert found.common.tobytes() == server.held.tobytes()
            memory = {HELD: found.common} | {MERGED + n: a for n, a in found.merged.items()}
            states[name] = ClientState(round_, {}, memory)
            for layer, merged in server.merged.items():
                np.testing.assert_allclose(found.merged[layer], merged.B @ merged.A, atol=1e-5)
        after = server.held + vector(round_)
        after[FACTORS.span("0.B")] = server.held[FACTORS.span("0.B")]  # unchanged: not carried
        server.publish(round_, after, factors if round_ == 2 else {}, present)


def kept(own, round_=3) -> ClientState:
    memory = {PERSONAL + name: array for name, array in own.items()}
    return ClientState(round_, {PERSONAL + "0.gate.bias": np.ones(1, np.float32)}, memory)


def test_the_others_are_the_weighted_mean_without_ones_own_part_by_hand():
    clients, weights = [FACTORS.unpack(vector(seed)) for seed in (1, 2, 3)], [5, 20, 75]
    mean = {n: sum(w / 100 * c[n] for c, w in zip(clients, weights, strict=True)) for n in FACTORS.names}
    found = others(mean, kept(clients[1]), 0.2, 3)
    assert found.keys() == set(FACTORS.names)
    for name, array in found.items():
        expected = (5 * clients[0][name] + 75 * clients[2][name]) / 80
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-5)
        assert array.dtype == np.float32


def test_of_equal_clients_the_others_are_as_oneself():
    own = FACTORS.unpack(START_)
    for name, array in others(own, kept(own), 0.3, 3).items():
        np.testing.assert_allclose(array, own[name], rtol=1e-6)


@pytest.mark.parametrize(
    ("state", "share"),
    [
        (None, 0.5),
        (ClientState(3, {}), 0.5),
        (kept(FACTORS.unpack(vector(1)), round_=2), 0.5),
        (kept(FACTORS.unpack(vector(1))), 0.0),
        (kept(FACTORS.unpack(vector(1))), 1.0),
    ],
    ids=["never took part", "keeps nothing", "of another round", "not in the mean", "alone in the mean"],
)
def test_one_without_a_part_in_the_mean_takes_nothing_off_it(state, share):
    mean = FACTORS.unpack(START_)
    found = others(mean, state, share, 3)
    assert all(np.array_equal(found[name], mean[name]) for name in FACTORS.names)


def test_a_change_from_another_base_or_coded_otherwise_or_altered_is_refused():
    codec = Dense(values="int8")
    server = Downlink(FACTORS, START_, codec, seed=0)
    server.publish(2, START_ + vector(1), {}, ["0"])
    sending = server.sending("0")
    header = wire.BroadcastHeader(round=3, shared="0", **sending.fields)
    message, state = (header, sending.arrays), ClientState(2, {}, {HELD: START_})
    assert read(message, state, codec).common.tobytes() == server.held.tobytes()
    altered = sending.arrays[0].copy()
    altered[-1] ^= 1
    cases = [
        (message, None, codec, "this client last kept nothing"),
        (message, replace(state, round=1), codec, "this client last kept round 1"),
        (message, replace(state, memory={}), codec, "a difference to values that this client lacks"),
        (message, replace(state, memory={HELD: vector(7)}), codec, "digest"),
        (message, state, None, "this client reads none"),
        (message, state, Dense(values="int4"), "this client reads dense int4/256"),
        ((header, [altered]), state, codec, "digest"),
        ((header, [sending.arrays[0][:-1]]), state, codec, "bytes"),
        ((header, [START_]), state, codec, "uint8"),
        ((replace(header, base=0), sending.arrays), state, codec, "values that this client lacks"),
        ((replace(header, base=-2), sending.arrays), state, codec, "round -2"),
        ((replace(header, carried="1"), sending.arrays), state, codec, "expected at most"),
    ]
    for case, kept, downlink, said in cases:
        with pytest.raises(WireError, match=said):
            read(case, kept, downlink)


def model(policy, common, state=None, turn=None) -> dict[str, np.ndarray]:
    pool = LAYOUT.select(policy(LAYOUT).shared)
    turn = turn or Turn(policy.in_round(LAYOUT, 1))
    return personal(policy, LAYOUT, Received(turn, pool.pack(common), {}), INITIAL, state)


def of_pool(policy, values) -> dict[str, np.ndarray]:
    return {name: values[name] for name in policy(LAYOUT).shared}


def test_what_is_shared_is_common_what_is_local_its_own_and_what_is_frozen_the_initial():
    policy = RoleSplit(A="shared", B="local", head="frozen")
    common, own = of_pool(policy, arrays(1)), arrays(2)
    state = ClientState(1, {name: own[name] for name in ("0.B", "1.B")})
    found = model(policy, common, state)
    for name in LAYOUT.names:
        source = common if name.endswith("A") else own if name.endswith("B") else INITIAL
        np.testing.assert_array_equal(found[name], source[name])
    newcomer = model(policy, common)
    for name in LAYOUT.names:
        np.testing.assert_array_equal(newcomer[name], (common if name.endswith("A") else INITIAL)[name])


def test_what_joins_starts_from_its_own_what_leaves_from_the_common_and_the_unsent():
    common, own = of_pool(FEDIT, arrays(1)), arrays(2)
    residual = vector(3)
    state = ClientState(1, {"0.A": own["0.A"], "1.A": own["1.A"], "head": own["head"]}, {RESIDUAL: residual})
    found = model(FEDIT, common, state, Turn(frozenset({"0.A", "0.B"}), joining=frozenset({"0.A", "0.B"})))
    np.testing.assert_array_equal(found["0.A"], own["0.A"])
    np.testing.assert_array_equal(found["0.B"], common["0.B"], "it had none of its own")
    np.testing.assert_array_equal(found["1.A"], own["1.A"], "not shared this round, its own as before")
    np.testing.assert_array_equal(found["1.B"], common["1.B"] + FACTORS.unpack(residual)["1.B"])
    np.testing.assert_array_equal(model(FEDIT, common, state)["0.A"], common["0.A"], "shared, not joining")
    bare = model(FEDIT, common, ClientState(1, {}), Turn(frozenset()))
    np.testing.assert_array_equal(bare["1.B"], common["1.B"])


def test_what_stands_still_in_its_turn_is_common_whatever_was_not_sent_of_it():
    policy = Alternate(allow=BOTH)
    common = of_pool(policy, arrays(1))
    state = ClientState(1, {"head": INITIAL["head"]}, {RESIDUAL: vector(3)})
    found = model(policy, common, state, Turn(policy.in_round(LAYOUT, 1)))
    for name in FACTORS.names:
        np.testing.assert_array_equal(found[name], common[name])


def soft(b: float, head: float) -> RoleSplit:
    return RoleSplit(A="shared", B=b, head=head, allow=BOTH)


def after_fit(policy, start, common, moved) -> ClientState:
    """What a client remembers that started a round with ``start`` and ended it at ``moved``."""
    memory = {}
    for name in policy.degrees(LAYOUT):
        memory |= {START + name: start[name], TRAINED + name: moved[name], COMMON + name: common[name]}
    return ClientState(1, {}, memory)


def test_the_soft_mean_by_hand():
    """B_k <- B_k + dB + l (dB_k - dB) and H_k <- H + l (H'_k - H)."""
    policy = soft(0.4, 0.6)
    start, before, trained, after = (arrays(seed) for seed in range(4))
    found = model(policy, of_pool(policy, after), after_fit(policy, start, before, trained))
    for name in ("0.B", "1.B"):
        moved, mine = after[name] - before[name], trained[name] - start[name]
        np.testing.assert_allclose(found[name], start[name] + moved + 0.4 * (mine - moved), atol=1e-6)
    np.testing.assert_allclose(
        found["head"], after["head"] + 0.6 * (trained["head"] - after["head"]), atol=1e-6
    )
    np.testing.assert_array_equal(found["0.A"], after["0.A"])


def test_a_newcomer_to_a_soft_split_starts_from_what_is_common():
    policy, common = soft(0.4, 0.6), arrays(1)
    for state in (None, ClientState(1, {}, {RESIDUAL: vector(2, LAYOUT.size)})):
        found = model(policy, of_pool(policy, common), state)
        for name in LAYOUT.names:
            np.testing.assert_array_equal(found[name], common[name])


def federate(degree: float, missed: set[tuple[int, int]], clients: int = 3, rounds: int = 4, seed: int = 0):
    """Soft rounds of clients that move at random; (client, round) in ``missed`` take no part. Yields the
    common values and, by client, its model and what it ended its last round with."""
    policy, rng = soft(degree, degree), np.random.default_rng(seed)
    common, states, ended = arrays(50), [None] * clients, [None] * clients
    for round_ in range(rounds):
        models = [model(policy, of_pool(policy, common), state) for state in states]
        present = [k for k in range(clients) if (k, round_) not in missed]
        moves = {}
        for k in present:
            ended[k] = {n: a + rng.normal(size=a.shape).astype(np.float32) for n, a in models[k].items()}
            states[k] = after_fit(policy, models[k], common, ended[k])
            moves[k] = {n: ended[k][n] - models[k][n] for n in ended[k]}
        common = {
            n: np.mean([ended[k][n] for k in present], axis=0, dtype=np.float32)
            if n == "head"
            else common[n] + np.mean([moves[k][n] for k in present], axis=0, dtype=np.float32)
            for n in common
        }
        yield common, [model(policy, of_pool(policy, common), state) for state in states], ended


MISSED = [set(), {(0, 1), (0, 2), (1, 3)}]


@pytest.mark.parametrize("missed", MISSED, ids=["all there", "some missing"])
def test_at_the_ends_of_the_degree_a_soft_split_is_a_common_one_or_a_local_one(missed):
    for common, models, _ in federate(1e-6, missed):
        for mine in models:
            for name in LAYOUT.names:
                np.testing.assert_allclose(mine[name], common[name], atol=1e-4)
    for _, models, ended in federate(1 - 1e-6, missed):
        for mine, last in zip(models, ended, strict=True):
            for name in ("0.B", "1.B", "head"):
                np.testing.assert_allclose(mine[name], last[name], atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(0, 99))
def test_the_clients_mean_factor_is_the_common_one_in_every_round(degree, seed):
    for common, models, _ in federate(degree, set(), seed=seed):
        for name in ("0.B", "1.B"):
            mean = np.mean([mine[name] for mine in models], axis=0)
            np.testing.assert_allclose(mean, common[name], atol=1e-4)


def test_rounds_that_a_client_missed_do_not_lose_what_is_its_own():
    """B follows the common movement of all of them, and its own part of the last counts as ever."""
    policy = soft(0.5, 0.5)
    start, before, trained = (arrays(seed) for seed in range(3))
    state = after_fit(policy, start, before, trained)
    for later in (arrays(3), arrays(4)):
        found = model(policy, of_pool(policy, later), state)["0.B"]
        follows = start["0.B"] + later["0.B"] - before["0.B"]
        np.testing.assert_allclose(found, (follows + trained["0.B"]) / 2, atol=1e-6)
