"""Whole runs of the methods that a config can choose: laws between them, and that each of them runs.

Bits are compared: one method that is a special case of another gives the same ones.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from remarks import failures_of

from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.exchange.arrays import NamedArrays
from fedsa_lora.exchange.witness import matches, private_values
from fedsa_lora.server.build import skeleton
from fedsa_lora.store import ClientState, DirectoryStore
from strategies.audience import GROUP, held_by
from strategies.plans.grouping import MEMBER
from strategies.round.downlink import HELD, MERGED_A, MERGED_B

ROOT = Path(__file__).resolve().parents[2]
Runner = Callable[..., Path]
BRIEF = (
    "federation.clients=3", "federation.rounds=3", "run.keep_generations=9", "train.steps=2",
    "evaluation.local_only=false", "evaluation.before=false", "evaluation.every=0",
)  # fmt: skip


@pytest.fixture(scope="session")
def run(run_smoke: Runner, run_once: Runner) -> Runner:
    """A brief smoke run, made once for the same words unless it is to be made ``again``."""

    def made(*words: str, again: bool = False) -> Path:
        return (run_smoke if again else run_once)(*BRIEF, *words)

    return made


def checkpoint(path: Path, round_: int | None = None) -> ClientState:
    state = DirectoryStore(path, "checkpoints", read_config(path).name, 9).load(round_)
    assert state is not None
    return state


def states(path: Path) -> dict[str, ClientState]:
    """The last state of every client that took part."""
    folders = sorted(folder.name for folder in (path / "clients").iterdir())
    found = {client: build.store(read_config(path), client).load() for client in folders}
    return {client: state for client, state in found.items() if state is not None}


def everything(path: Path) -> dict[str, NamedArrays]:
    """What the server and each client ended with."""
    return {"server": checkpoint(path).tensors} | {c: state.tensors for c, state in states(path).items()}


def rows(path: Path, name: str = "rounds") -> list[dict]:
    return [json.loads(line) for line in (path / f"{name}.jsonl").read_text().splitlines()]


def fits(path: Path) -> list[dict]:
    return [row for row in rows(path, "clients") if row["phase"] == "fit"]


def assert_same(one: Path, two: Path, tolerance: float = 0.0) -> None:
    first, second = everything(one), everything(two)
    assert first.keys() == second.keys()
    for owner, tensors in first.items():
        assert tensors.keys() == second[owner].keys()
        for name, array in tensors.items():
            apart = np.abs(array - second[owner][name]).max()
            assert apart <= tolerance, (owner, name)


def assert_sound(path: Path) -> None:
    """The run went on from its start, and all that is shared is finite float32."""
    first, last = checkpoint(path, 1).tensors, checkpoint(path)
    assert last.round == len(rows(path)) > 1
    for name, array in last.tensors.items():
        assert array.dtype == np.float32
        assert np.isfinite(array).all(), name
    assert any(not np.array_equal(array, first[name]) for name, array in last.tensors.items())


def products(path: Path) -> dict[str, np.ndarray]:
    """B A of every layer on the server, and what is merged, in units of the frozen weights."""
    state, found = checkpoint(path), {}
    for name, b in state.tensors.items():
        if name.endswith(".lora_B.weight"):
            layer = name.removesuffix(".lora_B.weight")
            found[layer] = b.astype(float) @ state.tensors[f"{layer}.lora_A.weight"]
            if MERGED_A + layer in state.memory:
                found[layer] += state.memory[MERGED_B + layer] @ state.memory[MERGED_A + layer]
    assert found
    return found


FEDSA = ("split=share_a", "head=local")
FEDIT = ("split=share_ab", "head=shared")
SAME = {
    "importance with threshold 0 is FedSA": (("split=importance", "split.threshold=0"), FEDSA),
    "top-k of all is dense": (("codec=topk", "codec.ratio=1.0"), FEDSA),
    "random-k of all is dense": (("codec=randomk", "codec.ratio=1.0"), FEDSA),
    "top-k of all is dense by any split": (
        ("split=share_ab", "codec=topk", "codec.ratio=1.0"), ("split=share_ab",)
    ),
    "soft with B of its own is FedSA": (("split=soft", "split.B=1.0"), FEDSA),
    "soft with B and head of its own is FedSA": (
        ("split=soft", "split.B=1.0", "head=soft", "head.degree=1.0"), FEDSA
    ),
    "soft with nothing of its own is FedIT": (
        ("split=soft", "split.B=0.0", "head=soft", "head.degree=0.0"), FEDIT
    ),
    "soft without B of its own is FedIT": (("split=soft", "split.B=0.0", "head=shared"), FEDIT),
    "FedProx without its term is FedAvg": (("strategy=fedprox", "strategy.proximal_mu=0"), FEDSA),
    "FedAvgM without momentum is FedAvg": (("strategy=fedavgm", "strategy.server_momentum=0"), FEDSA),
    "layer-wise over every layer is FedSA": (("split=layer_wise", "split.last=null", "split.every=1"), FEDSA),
    "one group is FedSA": (("clusters=updates", "clusters.groups=1", "clusters.after=1"), FEDSA),
    "one group is FedSA with a head by counts, sparse": (
        ("clusters=updates", "clusters.groups=1", "clusters.after=1", "head=shared", "codec=topk"),
        ("head=shared", "codec=topk"),
    ),
    "one group with a split by importance is importance": (
        ("split=importance", "clusters=updates", "clusters.groups=1", "clusters.after=1"),
        ("split=importance",),
    ),
    "least variance while it measures is FedSA": (
        ("split=least_variance", "split.count=1", "split.measure=3"), FEDSA
    ),
}  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("special", "general"), SAME.values(), ids=SAME)
def test_a_special_case_gives_the_same_bits(run, special, general):
    assert_same(run(*special), run(*general))


@pytest.mark.slow
def test_that_comparison_tells_methods_apart(run):
    for other in (("split=soft",), ("split=importance",), ("codec=topk",)):
        with pytest.raises(AssertionError):
            assert_same(run(*other), run(*FEDSA))


def test_importance_above_every_level_is_training_alone(run):
    one, two = run("split=importance", "split.threshold=1.1"), run("split=local_only")
    found, expected = states(one), states(two)
    assert found.keys() == expected.keys()
    for client, state in expected.items():
        assert state.tensors.keys() == found[client].tensors.keys()
        assert any("lora_A" in name for name in state.tensors)
        for name, array in state.tensors.items():
            assert np.array_equal(array, found[client].tensors[name]), (client, name)
    assert [row["shared"] for row in rows(one)] == [0, 0, 0]


@pytest.mark.slow
def test_a_dense_downlink_is_a_whole_one_but_for_rounding_and_costs_what_changes(run):
    gently = ("train.lr=1e-3", "train.head_lr=1e-3")  # at these rates Adam does not blow up a rounding
    whole, dense = run(*gently), run("downlink=dense", *gently)
    assert_same(whole, dense, 1e-6)
    whole, dense = run("split=alternate", *gently), run("split=alternate", "downlink=dense", *gently)
    assert_same(whole, dense, 1e-6)
    one, two = (sum(row["bytes_down"] for row in fits(path) if row["round"] > 1) for path in (whole, dense))
    assert two < 0.75 * one


@pytest.mark.sampled(3)
@pytest.mark.parametrize("codec", ["dense", "topk"])
@pytest.mark.parametrize("words", [("split=alternate",), ("split=ffa",), ("split=fedsvd", "strategy=fedsvd")])
def test_what_trains_one_factor_at_a_time_is_averaged_exactly(run, words, codec):
    lossy = () if codec == "dense" else ("codec=topk", "codec.error_feedback=false")
    found = [row["aggregation_error"] for row in rows(run(*words, *lossy))]
    assert max(found) < 1e-6


def test_fedits_mean_is_not_exact_and_fedsas_is_not_known(run):
    assert min(row["aggregation_error"] for row in rows(run(*FEDIT))) > 1e-3
    assert {row["aggregation_error"] for row in rows(run(*FEDSA))} == {None}


@pytest.mark.parametrize("head", ["local", "shared"])
def test_the_resting_factor_of_alternate_stays_to_the_bit_and_the_other_moves(run, head):
    path = run("split=alternate", f"head={head}", "federation.rounds=4")
    for round_, moves in ((2, "A"), (3, "B"), (4, "A")):
        before, after = checkpoint(path, round_ - 1).tensors, checkpoint(path, round_).tensors
        for name, array in after.items():
            assert np.array_equal(array, before[name]) == (f"lora_{moves}" not in name and "lora" in name), (
                name
            )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("rule", ["fedex", "flora", "flexlora", "fedrot"])
def test_of_one_client_every_rule_gives_back_its_own_product(run, rule):
    alone = ("split=share_ab", "federation.clients=1", "federation.rounds=1")
    expected, found = products(run(*alone)), products(run(*alone, f"strategy={rule}"))
    assert found.keys() == expected.keys()
    for layer, array in expected.items():
        assert np.abs(array).max() > 1e-3
        np.testing.assert_allclose(found[layer], array, rtol=0, atol=1e-5)


def test_exact_rules_agree_on_the_mean_of_the_products_and_fedavg_is_farther_from_it_than_flexlora(run):
    """After one round from a common start all rules were given the same updates."""
    once = ("split=share_ab", "federation.rounds=1")
    fedex, flora, flex, plain = (
        products(run(*once, f"strategy={rule}")) for rule in ("fedex", "flora", "flexlora", "fedavg")
    )
    for layer, exact in fedex.items():
        np.testing.assert_allclose(flora[layer], exact, rtol=0, atol=1e-5)
        assert 1e-3 < np.linalg.norm(flex[layer] - exact) < np.linalg.norm(plain[layer] - exact)


GROUPS = ("clusters=updates", "clusters.after=1", "federation.clients=4")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "words",
    [("head=shared", "codec=topk_int8"), ("split=soft", "head=soft"),
     ("split=share_b", "strategy.fraction_fit=0.5"),
     *(pytest.param(words, marks=pytest.mark.slow) for words in (
         (), (*FEDIT, "strategy=fedprox"), ("split=alternate",), ("split=layer_wise", "split.last=1"),
     ))],
)  # fmt: skip
def test_groups_go_with_any_split_head_and_codec_and_each_client_holds_what_its_group_does(run, words):
    path = run(*GROUPS, *words)
    assert_sound(path)
    memory, found = checkpoint(path).memory, rows(path)
    assert set(found[0]["groups"]) == set("0123")
    assert len({n for row in found for n in row["group_sizes"]}) == 2
    seen = {row["client"] for row in fits(path)}
    layout = skeleton(read_config(path)).layout.select(checkpoint(path).tensors)
    for client, number in found[-1]["groups"].items():
        assert (MEMBER + client in memory) == (client in seen)
        held = held_by(client, layout.pack(checkpoint(path).tensors), memory)
        assert np.array_equal(held, memory[f"{GROUP}{number}"])


DP = ("strategy=dp_fixed_clipping", "strategy.noise_multiplier=0")
GENTLY = ("train.lr=1e-3", "train.head_lr=1e-3")  # at these rates Adam does not blow up a rounding


def test_a_plug_ins_subclass_of_fedavg_is_fedavg_also_with_a_head_by_counts(run, tmp_path, monkeypatch):
    text = "from flwr.server.strategy import FedAvg\n\n\nclass Mine(FedAvg):\n    pass\n"
    (tmp_path / "my_fedavg.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "my_fedavg")
    for words in (("head=shared",), ("codec=topk",)):
        assert_same(run(*words), run("strategy._target_=my_fedavg.Mine", *words))


def test_clipping_that_binds_nobody_without_noise_is_fedavg_but_for_rounding(run):
    assert_same(run(*GENTLY), run(*DP, "strategy.clipping_norm=1e6", *GENTLY), 1e-5)


def test_noise_moves_what_is_shared_and_nothing_else_stops_a_run_with_it(run):
    noisy = ("federation.weights=uniform", "federation.min_results=1", "strategy.noise_multiplier=0.1")
    path = run("strategy=dp_fixed_clipping", *noisy)
    assert_sound(path)
    assert not any(failures_of(row) for row in rows(path))
    with pytest.raises(AssertionError):
        assert_same(path, run(*FEDSA))


def test_groups_cost_no_byte_and_part_the_clients(run):
    path, plain = run(*GROUPS, "clusters.every=0"), run("federation.clients=4")
    assert [row["bytes_down"] for row in fits(path)] == [row["bytes_down"] for row in fits(plain)]
    for one, two in zip(fits(path), fits(plain), strict=True):
        assert abs(one["bytes_up"] - two["bytes_up"]) < 40, "the digits of a loss and of seconds"
    last = checkpoint(path)
    vectors = {n: array for n, array in last.memory.items() if n.startswith(GROUP)}
    assert len({array.tobytes() for array in vectors.values()}) == len(vectors) == 2
    with pytest.raises(AssertionError):
        assert_same(path, plain)


FACTORS = {
    "fedex": "share_ab",
    "flora": "share_ab",
    "flexlora": "share_ab",
    "fedrot": "share_ab",
    "fedsvd": "fedsvd",
}
ENOUGH = {"krum": 5, "multikrum": 5, "bulyan": 7}
WORDS = {"dp_fixed_clipping": ("strategy.noise_multiplier=0", "strategy.clipping_norm=0.01")}
STRATEGIES = sorted(path.stem for path in (ROOT / "conf" / "strategy").glob("*.yaml"))


CHOICES = {
    "dense": (),
    "topk": ("codec=topk", "codec.error_feedback=false"),
    "importance": ("split=importance",),
}
# Those that go with every choice by default: a server optimizer, a rule that selects, and an exact one. All
# others do in the slow tests.
KINDS = ("fedadam", "krum", "fedex")
TOGETHER = [
    pytest.param(name, choice, marks=[] if choice == "dense" or name in KINDS else pytest.mark.slow)
    for name in STRATEGIES
    for choice in CHOICES
    if not (name in FACTORS and choice == "importance")
]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("name", "choice"), TOGETHER)
def test_every_strategy_runs_with_every_codec_and_split_that_it_goes_with(run, name, choice):
    split = (f"split={FACTORS[name]}",) if name in FACTORS else ()
    clients = f"federation.clients={ENOUGH.get(name, 3)}"
    words = (*WORDS.get(name, ()), *split, *CHOICES[choice])
    path = run(f"strategy={name}", clients, "federation.rounds=2", *words)
    assert_sound(path)
    assert not any(failures_of(row) for row in rows(path))


@pytest.mark.slow
def test_each_of_flowers_strategies_gives_other_values(run):
    def of(name: str) -> bytes:
        clients = f"federation.clients={ENOUGH.get(name, 3)}"
        words = (f"strategy={name}", clients, "federation.rounds=2", *WORDS.get(name, ()))
        shared = checkpoint(run(*words)).tensors
        return b"".join(shared[key].tobytes() for key in sorted(shared))

    plain = [name for name in STRATEGIES if name not in FACTORS]
    assert len({of(name) for name in plain}) == len(plain)


@pytest.mark.parametrize("rule", ["flora", "flexlora"])
@pytest.mark.parametrize("ranks", ["{0:2,1:4,2:8}", pytest.param("[2,4]", marks=pytest.mark.slow)])
def test_clients_of_different_ranks_train_together_and_send_what_their_rank_is(run, rule, ranks):
    path = run("split=share_ab", f"strategy={rule}", f"federation.ranks={ranks}")
    assert_sound(path)
    config = read_config(path)
    layout = skeleton(config).layout
    pool = layout.select(n for n in layout.names if "lora" in n)
    for row in fits(path):
        values = 4 * pool.limited(config.federation.client_ranks(config.seed)[row["client"]]).size
        assert values < row["bytes_up"] < values + 2500


VARIANTS = ["default", "rslora", "dora", "vera", "pissa", "orthogonal"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_lora_sends_what_is_like_a_and_no_value_of_what_is_like_b(run, variant):
    path = run(f"lora={variant}", "run.keep_messages=true", "federation.rounds=2")
    assert_sound(path)
    config = read_config(path)
    layout = skeleton(config).layout
    shared = {spec.name for spec in layout if spec.role == "A"}
    assert checkpoint(path).tensors.keys() == shared
    values = 4 * layout.select(shared).size
    assert all(values < row["bytes_up"] < values + 2500 for row in fits(path))
    messages = [p.read_bytes() for p in (path / "clients").glob("*/messages/*.bin")]
    assert len(messages) == 3 * (1 + 2 + 1)
    for client in "012":
        store = build.store(config, client)
        kept = [store.load(round_).tensors for round_ in store.rounds()]
        assert {name for tensors in kept for name in tensors} == set(layout.names) - shared
        private = private_values(kept)
        assert private.size > 100
        assert sum(matches(message, private) for message in messages) == 0


OTHERS = {
    "the last layer": ("split=layer_wise", "split.last=1"),
    "the first layer": ("split=layer_wise", "split.last=null", "split.first=1"),
    "a list of layers": ("split=layer_wise", "split.last=null", "split.layers=[1]"),
    "least variance": ("split=least_variance", "split.count=1", "split.measure=1"),
    "importance by client": ("split=importance", "split.scope=client"),
    "importance of A and B": (
        "split=importance", "split.pool=[A,B]", "split.allow=[A,B]", "split.score=taylor",
    ),
    "importance by disagreement": ("split=importance", "split.threshold=heterogeneity", "split.score=fisher"),
    "importance within a budget": ("split=importance", "split.threshold=0", "split.budget=3000"),
    "soft": ("split=soft", "head=soft"),
    "soft and sparse": ("split=soft", "head=soft", "codec=topk", "downlink=topk"),
    "a shared head without counts": (*FEDIT, "head.count_weighted=false", "strategy=fedmedian"),
    "share B": ("split=share_b",),
}  # fmt: skip


LIKE_ANOTHER = ("the first layer", "a list of layers", "soft and sparse", "importance of A and B")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "words", [pytest.param(OTHERS[n], id=n, marks=[pytest.mark.slow] * (n in LIKE_ANOTHER)) for n in OTHERS]
)
def test_every_other_split_runs(run, words):
    assert_sound(run(*words))


def test_what_is_shared_by_layer_or_budget_is_what_was_asked_for(run):
    whole = rows(run(*FEDSA))[0]["shared"]
    assert {row["shared"] for row in rows(run(*OTHERS["the last layer"]))} == {whole // 2}
    first, *rest = (row["shared"] for row in rows(run(*OTHERS["least variance"])))
    assert (first, set(rest)) == (whole, {whole // 2})
    assert {row["shared"] for row in rows(run("split=importance"))[1:]} == {whole // 2}
    budget = [row["shared"] for row in rows(run(*OTHERS["importance within a budget"]))]
    assert 0 < max(budget) <= 750


CODECS = sorted(path.stem for path in (ROOT / "conf" / "codec").glob("*.yaml"))
DOWNLINKS = sorted(path.stem for path in (ROOT / "conf" / "downlink").glob("*.yaml"))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_runs_and_sends_less_than_dense_does(run, codec):
    path = run(f"codec={codec}", "federation.rounds=2")
    assert_sound(path)
    sent, dense = (sum(row["bytes_up"] for row in fits(p)) for p in (path, run("federation.rounds=2")))
    # "dense" is the same but for the digits of seconds; what a threshold sends depends on the values
    assert (sent < 0.8 * dense) == (codec != "dense") or codec == "threshold"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("downlink", DOWNLINKS)
def test_every_downlink_runs_and_clients_hold_what_the_server_thinks(run, downlink):
    path = run(f"downlink={downlink}", "codec=topk_int8")
    assert_sound(path)
    memory = checkpoint(path, 2).memory
    assert (HELD in memory) == (downlink != "whole")
    for state in states(path).values():
        assert (HELD in state.memory) == (downlink != "whole")
        if HELD in memory:  # what clients received in round 3 is what was held after round 2
            assert np.array_equal(state.memory[HELD], memory[HELD])


ALL_AT_ONCE = ("split=importance", "codec=topk_int8", "downlink=int8", "strategy=fedadam", "head=shared",
               "federation.clients=4")  # fmt: skip


def test_two_equal_runs_give_equal_bits_with_everything_at_once(run):
    one = run(*ALL_AT_ONCE)
    two = run(*ALL_AT_ONCE, again=True)
    assert one != two
    assert_sound(one)
    assert_same(one, two)
    timed = {"seconds", "fit_seconds", "bytes_up"}  # the digits of seconds are in the message
    for first, second in zip(rows(one), rows(two), strict=True):
        assert first.keys() == second.keys()
        assert all(first[key] == second[key] for key in first.keys() - timed)


def test_clients_that_miss_rounds_go_on_from_what_is_theirs(run):
    half = ("federation.clients=6", "federation.rounds=5", "strategy.fraction_fit=0.5")
    path = run("split=importance", "codec=topk", "downlink=topk", *half)
    assert_sound(path)
    assert {len([row for row in fits(path) if row["round"] == n]) for n in range(1, 6)} == {3}
    last: dict[str, str] = {}
    for row in fits(path):
        assert row["private_before"] == last.get(row["client"], row["private_before"])
        last[row["client"]] = row["private_after"]
    assert len(last) > 3
    assert len(set(last.values())) == len(last)
    held = checkpoint(path).memory[HELD]
    assert all(state.memory[HELD].shape == held.shape for state in states(path).values())
    sizes = {row["bytes_down"] for row in fits(path) if row["round"] > 1}
    assert len(sizes) > 1, "who missed a round was sent all values"
