"""FedSAClient by itself: several clients on one resident model, and what it refuses."""

import re

import numpy as np
import pytest

from fedsa_lora.client import build
from fedsa_lora.client.client import FedSAClient
from fedsa_lora.client.model import majority
from fedsa_lora.client.personal import HELD, RESIDUAL, TRAINED
from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import cut
from fedsa_lora.exchange.vector import vector_digest
from fedsa_lora.store import ClientState
from fedsa_lora.tasks.classification import cross_entropy
from fedsa_lora.tasks.task import Examples
from strategies.round.downlink import Downlink
from strategies.rules.factors import Factors

STILL = (
    "train.lr=1e-30",
    "train.head_lr=1e-30",
)  # training that moves nothing: a client ends where it starts


class Desk:
    """A workbench with its clients, and the messages that a server would send them."""

    def __init__(self, folder, *overrides: str) -> None:
        self.config = load(["experiment=smoke", f"run.dir={folder}", *overrides])
        self.config.store_dir.mkdir(parents=True, exist_ok=True)  # which a run begins with
        self.bench = build.workbench(self.config)
        layout = self.bench.model.layout
        self.pool = layout.select(self.bench.split(layout).shared)
        self.start = self.pool.pack({n: self.bench.initial[n] for n in self.pool.names})
        self.downlink = Downlink(self.pool, self.start, self.config.downlink, seed=0)

    def store(self, client: str):
        return build.store(self.config, client)

    def client(self, name: str, *forbid: str) -> FedSAClient:
        return FedSAClient(name, self.bench, self.store(name), forbid)

    def ask(self, name: str, round_: int, vector=None, shared=None, joining=(), **changes):
        """The broadcast to a client: what the server has for it, or other values or fields."""
        pool, sending = self.bench.pool(name), self.downlink.sending(name, self.bench.ranks.get(name))
        shared = self.bench.split.in_round(pool, round_) if shared is None else shared
        fields = {"shared": pool.mask(shared), "joining": pool.mask(joining), **sending.fields}
        arrays = sending.arrays
        if vector is not None:
            arrays, fields["digest"] = [vector], vector_digest(vector)
        header = wire.BroadcastHeader(round=round_, **fields | changes)
        return arrays, dict(wire.write_header(header))

    def fit(self, name: str, round_: int, forbid=(), **asked):
        arrays, count, metrics = self.client(name, *forbid).fit(*self.ask(name, round_, **asked))
        return arrays[0], count, wire.read_header(metrics, wire.UploadHeader)

    def evaluate(self, name: str, round_: int):
        return self.client(name).evaluate(*self.ask(name, round_))

    def report(self, name: str, round_: int):
        return wire.read_header(self.evaluate(name, round_)[2], wire.UploadHeader).report

    def trained(self) -> np.ndarray:
        """What the client that was served last has of the pool, (pool.size,)."""
        standing = self.bench.model.read()
        return self.pool.pack({name: standing[name] for name in self.pool.names})

    def next(self, round_: int, merge=None) -> None:
        """End a round at values of its own: all took part."""
        moved = np.random.default_rng(round_).normal(scale=0.01, size=self.pool.size).astype(np.float32)
        self.downlink.publish(round_, self.downlink.held + moved, merge or {}, "0123")

    def backbone(self) -> dict[str, np.ndarray]:
        """The frozen weights under the adapters, as the client that was served last has them."""
        weights = self.bench.model.module.named_parameters()
        return {n: w.detach().numpy().copy() for n, w in weights if n.endswith("base_layer.weight")}


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path / "run")


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


WAYS = {
    "fedsa": [],
    "fedex, merged weights": ["split=share_ab", "strategy=fedex", "head=shared"],
    "soft": ["split=soft", "head=soft"],
    "alternate, top-k both ways": ["split=alternate", "codec=topk", "downlink=topk_int8"],
    "importance": ["split=importance"],
    "ranks": ["split=share_ab", "strategy=flora", "federation.ranks={0: 1, 2: 4}"],
}


def some_factors(desk: Desk, seed: int) -> dict[str, Factors]:
    """Of rank 1, for every layer."""
    rng, layers = np.random.default_rng(seed), [s.layer for s in desk.pool if s.role == "A"]
    draw = [[rng.normal(size=n).astype(np.float32) for n in [(1, 32), (32, 1)]] for _ in layers]
    return {layer: Factors(*pair) for layer, pair in zip(layers, draw, strict=True)}


def rounds(desk: Desk, order: str, answers: dict) -> None:
    """Two rounds in which the clients are served in an order, and their answers by client and round."""
    for round_ in (1, 2):
        for name in order:
            payload, _, header = desk.fit(name, round_)
            assert not header.error
            answers[name, round_] = (
                payload.tobytes(),
                header.private_before,
                header.private_after,
                header.scores,
            )
        desk.next(round_, some_factors(desk, round_) if "FedEx" in str(desk.config.strategy) else None)
        for name in order:
            answers[name, round_] += (desk.report(name, round_)["loss"],)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("overrides", WAYS.values(), ids=WAYS)
def test_neither_the_order_of_the_clients_nor_the_others_of_a_process_change_a_bit(tmp_path, overrides):
    forward, backward, alone = ({} for _ in range(3))
    rounds(Desk(tmp_path / "f", *overrides), "0123", forward)
    rounds(Desk(tmp_path / "b", *overrides), "3210", backward)
    for name in "02":
        rounds(Desk(tmp_path / name, *overrides), name, alone)
    assert forward == backward
    assert alone == {key: forward[key] for key in alone}
    for name in "0123":
        states = [
            build.store(load(["experiment=smoke", *overrides, f"run.dir={tmp_path}/{at}"]), name)
            for at in "fb"
        ]
        one, two = (store.load() for store in states)
        assert same(one.tensors, two.tensors)
        assert same(one.memory, two.memory)


def test_an_upload_is_the_difference_from_what_was_broadcast(desk):
    update, count, header = desk.fit("0", 1)
    assert np.array_equal(update, desk.trained() - desk.start)
    assert update.any()
    assert count == header.examples == len(desk.config.task.load_client("0").train)
    assert header.digest == vector_digest(update)
    assert desk.pool.named(header.shared) == set(desk.pool.names)
    assert (header.codec, header.counts, header.scores) == ("dense fp32", (), ())


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[] if way in ("ranks", "soft") else [pytest.mark.slow]) for way in WAYS]
)
def test_what_a_client_trained_is_kept_for_analysis_and_changes_nothing(tmp_path, way):
    plain, kept = {}, {}
    rounds(Desk(tmp_path / "plain", *WAYS[way]), "01", plain)
    desk = Desk(tmp_path / "kept", *WAYS[way], "run.keep_trained=true")
    rounds(desk, "01", kept)
    assert plain == kept
    desk.fit("1", 3)
    memory, standing = desk.store("1").load().memory, cut(desk.bench.model.read(), desk.bench.pool("1"))
    assert same({name: memory[TRAINED + name] for name in desk.bench.pool("1").names}, standing)


def test_what_was_merged_round_by_round_is_what_a_newcomer_is_sent_at_once_and_stays_with_no_other(tmp_path):
    desk = Desk(tmp_path / "run", "split=share_ab", "strategy=fedex")
    pretrained = desk.backbone()
    for round_ in (1, 2):
        desk.fit("0", round_)
        desk.downlink.publish(round_, desk.start, some_factors(desk, round_), "0")
    assert desk.report("0", 2)["loss"] > 0
    by_rounds = desk.backbone()
    assert desk.report("1", 2)["loss"] > 0
    at_once = desk.backbone()
    scale = desk.config.lora.alpha / desk.config.lora.r
    for layer, (first, second) in {
        n: [some_factors(desk, r)[n] for r in (1, 2)] for n in some_factors(desk, 1)
    }.items():
        (name,) = (n for n in pretrained if f".{layer}." in n)
        expected = pretrained[name] + scale * (first.B @ first.A + second.B @ second.A)
        np.testing.assert_allclose(by_rounds[name], expected, atol=1e-4)
        np.testing.assert_allclose(at_once[name], expected, atol=1e-4)
    desk.downlink = Downlink(desk.pool, desk.start, None, seed=0)
    assert desk.report("2", 1)["loss"] > 0
    assert same(desk.backbone(), pretrained)


def test_a_soft_client_goes_on_from_between_its_own_and_the_common_value(tmp_path):
    """B_k <- B_k + dB + l (dB_k - dB) and H_k <- H + l (H'_k - H), through two rounds of training."""
    words = ["split=soft", "head=soft"]
    desk, still = Desk(tmp_path / "run", *words), Desk(tmp_path / "run", *words, *STILL)
    starts, common, ended = [], [], []
    for round_ in (1, 2, 3):
        still.downlink = desk.downlink
        assert not still.fit("0", round_)[2].error
        starts.append(desk.pool.unpack(still.trained()))
        desk.fit("0", round_)
        common.append(desk.pool.unpack(desk.downlink.held))
        ended.append(desk.pool.unpack(desk.trained()))
        desk.next(round_)
    for now in (1, 2):
        for spec in desk.pool:
            before, moved = (each[now - 1][spec.name] for each in (common, ended))
            follows = starts[now - 1][spec.name] + common[now][spec.name] - before
            mixed = {
                "A": common[now][spec.name],
                "B": follows + 0.5 * (moved - follows),
                "head": common[now][spec.name] + 0.6 * (moved - common[now][spec.name]),
            }
            np.testing.assert_allclose(starts[now][spec.name], mixed[spec.role], atol=1e-6)


def test_evaluating_changes_neither_state_nor_answer(desk):
    desk.fit("0", 1)
    before = desk.store("0").load()
    answers = [desk.evaluate("0", 1) for _ in range(2)]
    desk.evaluate("1", 1)
    answers.append(desk.evaluate("0", 1))
    assert answers[0] == answers[1] == answers[2]
    after = desk.store("0").load()
    assert before.round == after.round
    assert same(before.tensors, after.tensors)


def test_a_client_uses_its_own_b(desk):
    """With another's B in its store a client answers otherwise: the store decides, not what is in memory."""
    desk.fit("0", 1)
    own = desk.evaluate("0", 1)[0]
    other = {n: a + np.float32(0.5) for n, a in desk.store("0").load().tensors.items()}
    desk.store("0").save(ClientState(1, other))
    assert desk.evaluate("0", 1)[0] != own


def test_a_later_generation_is_not_used_for_an_earlier_round_of_a_resumed_run(desk):
    desk.fit("0", 1)
    first = desk.fit("0", 2)
    desk.fit("0", 3)
    again = desk.fit("0", 2, resumed="0001")
    assert np.array_equal(first[0], again[0])
    assert desk.store("0").rounds() == [1, 2]


def test_a_message_that_it_comes_to_after_a_later_round_is_refused_and_b_stays(desk):
    for round_ in (1, 2, 3):
        desk.fit("0", round_)
    payload, _, header = desk.fit("0", 2)
    assert not payload.size
    assert "the round was requested too late: it has trained a later one since" in header.error
    assert desk.store("0").rounds() == [1, 2, 3]


FAULTS = {
    "another layout": ({"layout": "0" * 16}, "both sides must run the same model, lora and split"),
    "a digest that does not fit": ({"digest": "0" * 32}, "modified or truncated"),
    "a tensor that is not there": ({"carried": "ff"}, "does not name tensors of this layout of 4"),
    "a change of what it never saw": (
        {"base": 7},
        "this client last kept nothing: it needs a full broadcast",
    ),
}


@pytest.mark.parametrize(("changes", "said"), FAULTS.values(), ids=FAULTS)
def test_a_broadcast_that_does_not_fit_is_refused_and_nothing_is_stored(desk, changes, said):
    update, count, header = desk.fit("0", 1, **changes)
    assert said in header.error
    assert (update.size, count) == (0, 0)
    assert desk.store("0").load() is None


def test_a_total_that_is_less_than_the_clients_own_part_is_refused(desk):
    examples = desk.fit("0", 1)[1]
    assert f"of which this client alone has {examples}" in desk.fit("0", 2, total=examples - 1)[2].error
    assert not desk.fit("0", 2, total=examples)[2].error


def test_a_broadcast_that_is_too_long_or_too_short_is_refused(desk):
    for vector in (desk.start[:-1], np.append(desk.start, np.float32(0))):
        assert "expected float32" in desk.fit("0", 1, vector=vector)[2].error
    assert desk.store("0").load() is None


@pytest.mark.case(13)
def test_a_server_that_asks_for_b_gets_nothing_from_a_client_that_shares_a(desk, tmp_path):
    greedy = Desk(tmp_path / "greedy", "split=share_ab")
    arrays, count, metrics = desk.client("0").fit(*greedy.ask("0", 1))
    assert (
        "both sides must run the same model, lora and split"
        in wire.read_header(metrics, wire.UploadHeader).error
    )
    assert (arrays[0].size, count) == (0, 0)
    assert desk.store("0").load() is None


@pytest.mark.case(13)
@pytest.mark.parametrize(
    ("forbid", "named"),
    [
        (["B"], [f"{layer}.{at}.lora_B" for layer in (0, 1) for at in ("query", "value")]),
        (["*.layer.1.*query*"], ["1.query.lora_A", "1.query.lora_B"]),
        (["*.0.*value.lora_A*", "bert.embeddings.*"], ["0.value.lora_A"]),
        (["head"], ["classifier.bias", "classifier.weight"]),
    ],
)
def test_what_a_machine_keeps_in_is_named_and_not_sent(tmp_path, forbid, named):
    desk = Desk(tmp_path / "run", "split=share_ab", "head=shared")
    update, count, header = desk.fit("0", 1, forbid=forbid)
    names = [
        f"'{name}'" if name.startswith("cl") else name.replace(".", ".attention.self.", 1) for name in named
    ]
    assert "SplitError: the server asks for" in header.error
    assert all(name in header.error for name in names)
    assert header.error.count(", '") == len(named) - 1
    assert (update.size, count) == (0, 0)
    assert desk.store("0").load() is None
    assert not desk.fit("0", 1, forbid=["bert.embeddings.*"])[2].error


@pytest.mark.parametrize("word", ["*.layer.7.*", "no.such.*", "*.lora_a.*", "heads"])
def test_a_pattern_that_keeps_in_nothing_of_the_model_is_refused_before_anything_is_trained(tmp_path, word):
    desk = Desk(tmp_path / "run")
    with pytest.raises(ConfigError, match=re.escape(f"{word!r} matches no tensor")) as caught:
        desk.fit("0", 1, forbid=["B", word])
    assert "bert.encoder.layer.0.attention.self.query.lora_A" in str(caught.value)
    assert desk.store("0").load() is None


@pytest.mark.case(23)
def test_a_truncated_state_stops_the_client_and_is_named(desk, caplog):
    desk.fit("0", 1)
    path = desk.store("0").folder / "round-000001.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    _, _, header = desk.fit("0", 2)
    assert header.error.startswith("StoreError: a stored state is unreadable")
    assert "round-000001.safetensors is unreadable" in caplog.text
    assert not (desk.store("0").folder / "round-000002.safetensors").exists()


@pytest.mark.case(22)
def test_a_full_disk_is_an_error_and_the_round_before_stays(desk, monkeypatch, caplog):
    desk.fit("0", 1)
    before = desk.store("0").load()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedsa_lora.files.os.fsync", full)
    update, _, header = desk.fit("0", 2)
    assert header.error.startswith("RunError: a file cannot be written: check space")
    assert "No space left on device" in caplog.text
    assert not update.size
    monkeypatch.undo()
    after = desk.store("0").load()
    assert after.round == before.round == 1
    assert [p.name for p in desk.store("0").folder.iterdir()] == ["round-000001.safetensors"]


def test_the_global_model_is_what_a_newcomer_gets(tmp_path):
    everything = Desk(tmp_path / "ab", "split=share_ab", "head=shared")
    everything.fit("0", 1)
    report = everything.report("0", 1)
    assert report["global_accuracy"] == report["accuracy"]
    partly = Desk(tmp_path / "a", "split=share_a", "head=shared", "train.lr=0.5")
    partly.fit("0", 1)
    newcomer = partly.report("3", 1)
    assert newcomer["global_accuracy"] == newcomer["accuracy"], "client 3 has trained nothing yet"


def test_a_tensor_that_joins_starts_from_the_clients_own_value(tmp_path):
    desk, still = (
        Desk(tmp_path / "run", "split=importance"),
        Desk(tmp_path / "run", "split=importance", *STILL),
    )
    names = desk.pool.names
    assert desk.fit("0", 1, shared=())[0].size == 0
    own = desk.store("0").load().tensors
    assert set(names) < own.keys()
    for joining, expected in ((names, desk.pool.pack({n: own[n] for n in names})), ((), desk.start)):
        update, _, header = still.fit("0", 2, joining=joining, shared=names)
        assert not header.error
        np.testing.assert_array_equal(still.trained(), expected)
        np.testing.assert_array_equal(update, still.trained() - desk.start)
    update = desk.fit("0", 2, joining=names, shared=names)[0]
    np.testing.assert_allclose(desk.start + update, desk.trained(), atol=1e-7)
    assert set(names).isdisjoint(desk.store("0").load().tensors)


def test_a_tensor_that_leaves_goes_on_from_the_common_value_and_what_was_not_sent_of_it(tmp_path):
    words = ["split=importance", "codec=topk"]
    desk, still = Desk(tmp_path / "run", *words), Desk(tmp_path / "run", *words, *STILL)
    names = desk.pool.names
    stays, leaves = names[:2], names[2:]
    desk.fit("0", 1, shared=names)
    unsent = desk.store("0").load().memory[RESIDUAL]
    assert np.count_nonzero(unsent) > 0.8 * unsent.size
    common = np.random.default_rng(0).normal(size=unsent.size).astype(np.float32)
    assert not still.fit("0", 2, vector=common, shared=stays)[2].error
    went_on, state = desk.pool.unpack(still.trained()), still.store("0").load()
    for name in leaves:
        np.testing.assert_array_equal(
            went_on[name], (common + unsent)[desk.pool.span(name)].reshape(32 // 4, -1)
        )
        np.testing.assert_array_equal(state.tensors[name], went_on[name])
        assert not state.memory[RESIDUAL][desk.pool.span(name)].any(), "it is in the client's own value now"
    for name in stays:
        np.testing.assert_array_equal(went_on[name].ravel(), common[desk.pool.span(name)])
        assert state.memory[RESIDUAL][desk.pool.span(name)].any()


@pytest.mark.parametrize("codec", ["dense", "topk"])
def test_what_waits_for_its_turn_stands_still_to_the_bit_and_is_not_sent(tmp_path, codec):
    desk = Desk(tmp_path / "run", "split=alternate", f"codec={codec}")
    for round_, trained in ((1, "B"), (2, "A"), (3, "B")):
        before = desk.store("0").load()
        header = desk.fit("0", round_)[2]
        sent = {spec.role for spec in desk.pool.select(desk.pool.named(header.shared))}
        assert sent == {trained}
        now, held = (desk.pool.unpack(v) for v in (desk.trained(), desk.downlink.held))
        for spec in desk.pool:
            assert np.array_equal(now[spec.name], held[spec.name]) == (spec.role != trained), spec.name
        assert set(desk.store("0").load().tensors) == {"classifier.bias", "classifier.weight"}
        if codec == "topk" and before is not None:
            residuals = [before.memory[RESIDUAL], desk.store("0").load().memory[RESIDUAL]]
            for spec in desk.pool:
                kept = np.array_equal(*(residual[desk.pool.span(spec.name)] for residual in residuals))
                assert kept == (spec.role != trained), "what was not sent waits for its turn too"
        desk.next(round_)


def test_changes_are_held_to_the_bit_and_no_other_change_is_taken(tmp_path):
    desk = Desk(tmp_path / "run", "downlink=topk_int8")
    for round_ in (1, 2, 3):
        arrays, _ = desk.ask("0", round_)
        assert (arrays[0].dtype == np.uint8) == (round_ > 1)
        assert not desk.fit("0", round_)[2].error
        assert desk.store("0").load().memory[HELD].tobytes() == desk.downlink.held.tobytes()
        desk.next(round_)
        assert desk.report("0", round_)["loss"] > 0
    arrays, entries = desk.ask("0", 4)
    arrays[0][0] ^= 1
    state = desk.store("0").load()
    broken = {
        "altered": (lambda: desk.client("0").fit([arrays[0].copy()], entries), "WireError"),
        "never seen": (lambda: desk.client("1").fit(*desk.ask("1", 4)), "last kept nothing"),
        "another base": (lambda: desk.client("0").fit(*desk.ask("0", 4, base=2)), "last kept round 3"),
    }
    for call, said in broken.values():
        payload, count, metrics = call()
        assert said in wire.read_header(metrics, wire.UploadHeader).error
        assert (payload[0].size, count) == (0, 0)
    desk.store("0").save(ClientState(3, state.tensors, {}))
    assert "this client lacks: it needs a full broadcast" in desk.fit("0", 4)[2].error
    assert (desk.store("0").rounds()[-1], desk.store("1").load()) == (3, None)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("codec", [["codec=topk", "codec.ratio=0.02"], ["codec=randomk"], ["codec=int4"]])
def test_over_twenty_rounds_what_was_sent_and_what_is_left_is_all_that_was_learned(tmp_path, codec):
    desk = Desk(tmp_path / "run", *codec)
    learned, sent = np.zeros(desk.pool.size), np.zeros(desk.pool.size)
    for round_ in range(1, 21):
        payload, _, header = desk.fit("0", round_)
        assert not header.error
        learned += desk.trained().astype(float) - desk.downlink.held
        update = desk.config.codec.decode(payload, desk.pool.size).dense()
        sent += update
        desk.downlink.publish(round_, desk.downlink.held + update, {}, "0")
    left = desk.store("0").load().memory[RESIDUAL]
    np.testing.assert_allclose(sent + left, learned, atol=1e-5)
    assert np.abs(left).max() > 1e-3, "without the residual something is missing"


def test_a_client_scales_what_it_sends_down_to_its_bound_and_keeps_its_own_as_it_was_trained(tmp_path):
    plain, bounded = Desk(tmp_path / "a"), Desk(tmp_path / "b", "train.max_update_norm=1e-3")
    update, clipped = (desk.fit("0", 1)[0] for desk in (plain, bounded))
    length = np.linalg.norm(update.astype(float))
    assert length > 1e-2
    np.testing.assert_allclose(clipped, update * (1e-3 / length), rtol=1e-5, atol=1e-12)
    assert same(plain.store("0").load().tensors, bounded.store("0").load().tensors)
    far = Desk(tmp_path / "c", "train.max_update_norm=1e6").fit("0", 1)[0]
    assert far.tobytes() == update.tobytes()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("codec", ["dense", "topk", "randomk", "threshold", "int4"])
def test_a_client_that_shares_nothing_sends_nothing(tmp_path, codec):
    desk = Desk(tmp_path / "run", "split=local_only", f"codec={codec}")
    payload, count, header = desk.fit("0", 1)
    assert not header.error
    assert payload.nbytes == 0
    assert count == header.examples
    assert header.private_before != header.private_after


def test_an_adapter_of_a_lower_rank_sends_its_own_rows_and_the_others_stay_zero(tmp_path):
    desk = Desk(tmp_path / "run", "split=share_ab", "strategy=flora", "federation.ranks={0: 2, 1: 8}")
    for round_ in (1, 2):
        for name, rank in (("0", 2), ("1", 8), ("2", 8)):
            payload, _, header = desk.fit(name, round_)
            assert not header.error
            assert payload.size == desk.pool.size * rank // 8
            now = desk.bench.model.read()
            for spec in desk.pool:
                rows = now[spec.name] if spec.role == "A" else now[spec.name].T
                assert rows[:rank].any(axis=1).all()
                assert not rows[rank:].any()
        desk.next(round_)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["head=shared"], True),
        (["head=soft", "split=soft"], True),
        (["head=shared", "head.count_weighted=false"], False),
        (["head=local"], False),
        (["head=frozen"], False),
        (["head=soft", "head.degree=1"], False),
    ],
)
def test_class_counts_are_told_where_a_shared_head_is_weighted_by_them_and_nowhere_else(
    tmp_path, overrides, told
):
    desk = Desk(tmp_path / "run", *overrides)
    header = desk.fit("0", 1)[2]
    labels = desk.config.task.load_client("0").train.labels
    assert header.counts == (tuple(np.bincount(labels, minlength=7)) if told else ())


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["split=share_a"], 0),
        (["split=least_variance", "split.count=1"], 0),
        (["split=importance"], 4),
        (["split=importance", "split.score=taylor", "head=shared"], 4),
        (["split=importance", "split.allow=[A,B]", "split.pool=[A,B]", "head=shared"], 8),
    ],
)
def test_scores_are_one_for_each_factor_of_the_pool_whatever_a_round_shares(tmp_path, overrides, count):
    desk = Desk(tmp_path / "run", *overrides)
    for shared in (desk.pool.names, desk.pool.names[:1]):
        header = desk.fit("0", 1, shared=shared)[2]
        assert not header.error
        assert len(header.scores) == count
        assert all(score > 0 for score in header.scores)


def test_floor_and_loss_by_hand(desk):
    def part(labels):
        return Examples({}, np.array(labels), np.ones(len(labels), dtype=np.int64))

    assert majority(desk.bench.task, part([2, 2, 0]), part([2, 2, 1, 0])) == 0.5
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32))
    expected = -(np.log(0.75) + np.log(0.5)) / 2
    assert cross_entropy(logits, np.array([1, 0])) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("found", [float("nan"), float("inf")])
def test_a_measure_that_is_no_number_is_this_clients_error_and_names_the_remedy(desk, monkeypatch, found):
    desk.fit("0", 1)
    numbers = {"accuracy": 0.5, "loss": found, "macro_f1": 0.5, "matthews": 0.0}
    monkeypatch.setattr(type(desk.bench.task), "evaluate", lambda *_: numbers)
    loss, count, metrics = desk.evaluate("0", 1)
    header = wire.read_header(metrics, wire.UploadHeader)
    assert (loss, count) == (0.0, 0)
    told = f"TrainingError: on the examples that the model is measured on, loss is {found}: lower train.lr"
    assert header.error == told
