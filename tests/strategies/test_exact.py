"""Laws of the rules over a whole adapter: linear, convolution and embedding layers, and a shared head."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from flwr.server.strategy import FedAvg
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from strategies.rules.exact import Combined, FactorRule, FedEx, FedRot, FedSVD, FlexLoRA, FLoRA
from strategies.rules.pairs import pairs

RANK = 4
SHAPES = {  # by layer: A and B
    "attention.query": ((RANK, 24), (20, RANK)),
    "conv": ((RANK, 3, 3, 3), (18, RANK, 1, 1)),
    "embedding": ((RANK, 40), (16, RANK)),
}
LAYOUT = Layout(
    (
        *(TensorSpec(f"{layer}.lora_A.weight", a, "A", layer) for layer, (a, _) in SHAPES.items()),
        *(TensorSpec(f"{layer}.lora_B.weight", b, "B", layer) for layer, (_, b) in SHAPES.items()),
        TensorSpec("classifier.weight", (3, 16), "head", "classifier"),
    )
)
RULES = {
    "FedEx": FedEx,
    "FLoRA": partial(FLoRA, seed=7),
    "FlexLoRA": FlexLoRA,
    "FedSVD": FedSVD,
    "FedRot": FedRot,
}
SEEDS = st.integers(0, 2**32 - 1)
every_rule = pytest.mark.parametrize("name", RULES)


def values(rng: np.random.Generator, layout: Layout = LAYOUT, rank: int = RANK) -> dict[str, np.ndarray]:
    """Random values of a client of some rank, padded with zeros to the rank of the layout."""
    arrays = {spec.name: rng.normal(size=spec.shape).astype(np.float32) for spec in layout}
    for spec in layout:
        if spec.role == "A":
            arrays[spec.name][rank:] = 0
        elif spec.role == "B":
            arrays[spec.name][:, rank:] = 0
    return arrays


def round_of(seed: int, ranks: list[int], common_a: bool = False, layout: Layout = LAYOUT):
    """Start, clients and weights of one round; with ``common_a`` the clients' A is that of the start."""
    rng = np.random.default_rng(seed)
    start, clients = values(rng, layout), [values(rng, layout, rank) for rank in ranks]
    if common_a:
        kept = {spec.name: start[spec.name] for spec in layout if spec.role == "A"}
        clients = [client | kept for client in clients]
    return start, clients, rng.dirichlet(np.full(len(ranks), 3.0)).tolist()


def combined(name: str, seed: int = 0, ranks: tuple[int, ...] = (RANK, RANK, RANK)):
    """The outcome of a rule for a random round, and the round. FedSVD gets the common A that it needs."""
    start, clients, weights = round_of(seed, list(ranks), common_a=name == "FedSVD")
    return RULES[name]().combine(1, LAYOUT, start, clients, weights), start, clients, weights


def product(arrays: dict[str, np.ndarray], layer: str) -> np.ndarray:
    """The dense change of a weight (d_out, ...): what the layer computes with these A and B.

    Written for kernels axis by axis, so that it does not flatten as the rules do.
    """
    a, b = (arrays[f"{layer}.lora_{x}.weight"].astype(np.float64) for x in "AB")
    if a.ndim == 4:
        return np.einsum("orxy,rchw->ochw", b, a)
    return b @ a


def ideal(clients, weights, layer: str) -> np.ndarray:
    return sum(w * product(client, layer) for w, client in zip(weights, clients, strict=True))


def outcome(result: Combined, layer: str) -> np.ndarray:
    """What is added to W0 after the round: the new product and what was merged."""
    total = product(result.common, layer)
    if layer in result.merge:
        factors = result.merge[layer]
        merged = factors.B.astype(np.float64) @ factors.A.astype(np.float64)
        total = total + merged.reshape(total.shape)
    return total


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# --- every rule --------------------------------------------------------------------------------------


@every_rule
def test_every_tensor_comes_back_in_its_shape_and_the_rest_is_averaged(name):
    result, _, clients, weights = combined(name)
    LAYOUT.check(result.common)
    head = np.average([client["classifier.weight"] for client in clients], 0, weights)
    np.testing.assert_allclose(result.common["classifier.weight"], head, rtol=0, atol=1e-6)


@every_rule
def test_merged_factors_are_float32_of_the_shape_of_the_flattened_weight(name):
    result = combined(name)[0]
    assert set(result.merge) == (set(SHAPES) if name in ("FedEx", "FLoRA") else set())
    for layer, factors in result.merge.items():
        a, b = SHAPES[layer]
        assert factors.A.shape == (factors.rank, np.prod(a[1:]))
        assert factors.B.shape == (b[0], factors.rank)
        assert factors.A.dtype == factors.B.dtype == np.float32


@every_rule
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, order=st.permutations(range(4)))
def test_the_order_of_clients_does_not_matter(name, seed, order):
    ranks = [4, 2, 3, 1] if RULES[name]().mixes_ranks else [RANK] * 4
    start, clients, weights = round_of(seed, ranks, common_a=name == "FedSVD")
    first = RULES[name]().combine(1, LAYOUT, start, clients, weights)
    second = RULES[name]().combine(1, LAYOUT, start, [clients[i] for i in order], [weights[i] for i in order])
    for layer in SHAPES:
        np.testing.assert_allclose(
            outcome(second, layer),
            outcome(first, layer),
            rtol=0,
            atol=1e-6 * np.abs(outcome(first, layer)).max(),
        )


@every_rule
def test_one_client_gets_its_own_product_back(name):
    result, _, clients, _ = combined(name, ranks=(RANK,))
    for layer in SHAPES:
        assert relative(outcome(result, layer), product(clients[0], layer)) < 1e-6
    if name == "FedEx":
        assert result.merge == {}


@every_rule
def test_what_all_clients_agree_on_stays(name):
    start, clients, weights = round_of(0, [RANK] * 3, common_a=name == "FedSVD")
    result = RULES[name]().combine(1, LAYOUT, start, [clients[0]] * 3, weights)
    for layer in SHAPES:
        assert relative(outcome(result, layer), product(clients[0], layer)) < 1e-6


@every_rule
def test_inputs_are_not_changed(name):
    start, clients, weights = round_of(0, [RANK] * 3, common_a=name == "FedSVD")
    for arrays in (start, *clients):
        for array in arrays.values():
            array.setflags(write=False)
    result = RULES[name]().combine(1, LAYOUT, start, clients, weights)
    given_arrays = [array for arrays in (start, *clients) for array in arrays.values()]
    assert not any(np.shares_memory(new, old) for new in result.common.values() for old in given_arrays)


@every_rule
def test_a_layer_with_one_factor_is_named(name):
    layout = LAYOUT.select(set(LAYOUT.names) - {"conv.lora_B.weight", "embedding.lora_A.weight"})
    start, clients, weights = round_of(0, [RANK], layout=layout)
    with pytest.raises(ConfigError, match=r"'conv': \['conv.lora_A.weight'\], 'embedding': ") as error:
        RULES[name]().combine(1, layout, start, clients, weights)
    assert "query" not in str(error.value)


def test_without_any_adapter_there_is_nothing_to_combine():
    with pytest.raises(ConfigError, match=r"one of each from every layer.* the shared tensors are neither"):
        pairs(LAYOUT.select(["classifier.weight"]))


NO_PAIRS = {
    "two adapters": [("first.A", (1, 1)), ("second.A", (1, 1)), ("first.B", (1, 1)), ("second.B", (1, 1))],
    "DoRA's magnitude": [("x.A", (2, 5)), ("m.B", (7,)), ("x.B", (7, 2))],
    "VeRA's vectors": [("d.A", (2,)), ("b.B", (7,))],
    "a vector as A": [("x.A", (2,)), ("x.B", (7, 2))],
    "other ranks": [("x.A", (2, 5)), ("x.B", (7, 3))],
    "a kernel in B": [("x.A", (2, 5, 3, 3)), ("x.B", (7, 2, 3, 3))],
}


@pytest.mark.parametrize("tensors", NO_PAIRS.values(), ids=NO_PAIRS)
def test_tensors_without_a_product_are_refused_by_name(tensors):
    layout = Layout(tuple(TensorSpec(name, shape, name[-1], "layer") for name, shape in tensors))
    with pytest.raises(ConfigError) as error:
        pairs(layout)
    assert str({"layer": [name for name, _ in tensors]}) in str(error.value)


def test_pairs_are_found_by_layer_whatever_the_names():
    odd = Layout((TensorSpec("z", (2, 5), "A", "one"), TensorSpec("a", (7, 2), "B", "one")))
    pair = pairs(odd)["one"]
    assert (pair.A.name, pair.B.name) == ("z", "a")


@every_rule
def test_a_rule_samples_as_fedavg_and_refuses_to_average_flat_arrays(name):
    rule = RULES[name](fraction_fit=0.5, min_fit_clients=3, min_available_clients=6, min_evaluate_clients=1)
    assert isinstance(rule, FactorRule)
    assert isinstance(rule, FedAvg)
    assert rule.num_fit_clients(20) == (10, 6)
    with pytest.raises(RunError, match=rf"{name} combines A with B .* combine\(\)"):
        rule.aggregate_fit(1, [], [])


def test_which_rules_mix_ranks_and_which_give_other_factors_each_round():
    assert {name for name, rule in RULES.items() if rule().mixes_ranks} == {"FLoRA", "FlexLoRA"}
    assert {name for name, rule in RULES.items() if rule().renews} == {"FLoRA", "FlexLoRA", "FedSVD"}


# --- exact rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ranks"),
    [("FedEx", [4] * 5), ("FLoRA", [4] * 5), ("FLoRA", [1, 4, 2, 3]), ("FLoRA", [4] * 12)],
)
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_an_exact_rule_gives_the_mean_of_the_products(name, ranks, seed):
    result, _, clients, weights = combined(name, seed, tuple(ranks))
    for layer in SHAPES:
        assert relative(outcome(result, layer), ideal(clients, weights, layer)) < 1e-6


def test_the_mean_that_fedex_corrects_is_the_weighted_mean_and_is_wrong_by_itself():
    result, _, clients, weights = combined("FedEx")
    for name in LAYOUT.names:
        mean = np.average([client[name] for client in clients], 0, weights)
        np.testing.assert_allclose(result.common[name], mean, rtol=0, atol=1e-6)
    for layer in SHAPES:
        assert relative(product(result.common, layer), ideal(clients, weights, layer)) > 0.3


@pytest.mark.parametrize("clients", [2, 3, 4])
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_the_residual_of_fedex_needs_less_rank_than_its_definition(clients, spread):
    """(K - 1) r instead of (K + 1) r, also where clients differ little: rounding must not fill the rest."""
    rng = np.random.default_rng(clients)
    start = values(rng)
    ended = [{k: start[k] + np.float32(spread) * v for k, v in values(rng).items()} for _ in range(clients)]
    weights = rng.dirichlet(np.full(clients, 3.0)).tolist()
    result = FedEx().combine(1, LAYOUT, start, ended, weights)
    for layer in SHAPES:
        rank = result.merge[layer].rank if layer in result.merge else 0
        assert rank <= (clients - 1) * RANK
        assert spread < 1e-3 or rank == min((clients - 1) * RANK, *SHAPES[layer][1][:1])
        assert relative(outcome(result, layer), ideal(ended, weights, layer)) < 1e-6


def test_the_merge_of_flora_has_the_sum_of_the_ranks_and_no_more_than_the_matrix():
    few, many = combined("FLoRA", ranks=(1, 4, 2))[0], combined("FLoRA", ranks=(RANK,) * 12)[0]
    for layer, (a, b) in SHAPES.items():
        assert few.merge[layer].rank == 7
        assert many.merge[layer].rank == min(b[0], np.prod(a[1:])) < 12 * RANK


def test_flora_starts_afresh_from_seed_round_and_name():
    start, clients, weights = round_of(0, [RANK] * 2)

    def fresh(seed: int, round_: int) -> dict[str, np.ndarray]:
        return FLoRA(seed=seed).combine(round_, LAYOUT, start, clients, weights).common

    first = fresh(7, 1)
    for layer, (shape, _) in SHAPES.items():
        a, bound = first[f"{layer}.lora_A.weight"], np.prod(shape[1:]) ** -0.5
        assert not first[f"{layer}.lora_B.weight"].any()
        assert 0.9 * bound < np.abs(a).max() <= bound
        assert abs(a.mean()) < 0.3 * bound
        for same, other in ((fresh(7, 1), True), (fresh(8, 1), False), (fresh(7, 2), False)):
            assert np.array_equal(same[f"{layer}.lora_A.weight"], a) == other


def test_flora_draws_another_A_for_each_layer():
    specs = [TensorSpec(f"{x}.{r}", (2, 2), r, x) for x in ("first", "second") for r in ("A", "B")]
    layout = Layout(tuple(specs))
    start, clients, weights = round_of(0, [2], layout=layout)
    shared = FLoRA(seed=0).combine(1, layout, start, clients, weights).common
    assert not np.array_equal(shared["first.A"], shared["second.A"])


# --- FlexLoRA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [(4,), (2, 2), (1, 1, 2), (1, 2)])
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_flexlora_is_exact_where_the_sum_fits_into_the_rank(ranks, seed):
    result, _, clients, weights = combined("FlexLoRA", seed, ranks)
    for layer in SHAPES:
        assert relative(outcome(result, layer), ideal(clients, weights, layer)) < 1e-6


@pytest.mark.parametrize("kept", [1, 2, 4])
@pytest.mark.parametrize("ranks", [(4, 4, 4), (4, 1, 2, 3)])
def test_the_first_components_of_flexlora_are_the_best_of_their_number(ranks, kept):
    """What a client of rank r_k takes is the best that r_k components can be (Eckart-Young)."""
    result, _, clients, weights = combined("FlexLoRA", 0, ranks)
    for layer in SHAPES:
        total = ideal(clients, weights, layer)
        flat = total.reshape(len(total), -1)
        taken = dict(result.common)
        taken[f"{layer}.lora_A.weight"] = result.common[f"{layer}.lora_A.weight"][:kept]
        taken[f"{layer}.lora_B.weight"] = result.common[f"{layer}.lora_B.weight"][:, :kept]
        left_out = np.linalg.norm(np.linalg.svd(flat, compute_uv=False)[kept:])
        error = np.linalg.norm(product(taken, layer) - total)
        assert error == pytest.approx(left_out, rel=1e-6)
        assert left_out > 0.01 * np.linalg.norm(flat)


@pytest.mark.parametrize("ranks", [(1, 2), (0, 0)], ids=["low ranks", "nothing learned"])
def test_no_component_of_flexlora_is_dead(ranks):
    """With zeros in A and in B no gradient reaches either; surplus components keep the A of the start."""
    result, start, _, _ = combined("FlexLoRA", 0, ranks)
    for layer in SHAPES:
        a, b = (result.common[f"{layer}.lora_{x}.weight"] for x in "AB")
        assert a.reshape(RANK, -1).any(axis=1).all()
        assert np.array_equal(a[sum(ranks) :], start[f"{layer}.lora_A.weight"][sum(ranks) :])
        assert not b[:, sum(ranks) :].any()


# --- FedSVD ------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_fedsvd_keeps_the_product_and_makes_A_orthonormal(seed):
    result, _, clients, weights = combined("FedSVD", seed)
    for layer in SHAPES:
        a = result.common[f"{layer}.lora_A.weight"].reshape(RANK, -1).astype(np.float64)
        np.testing.assert_allclose(a @ a.T, np.eye(RANK), rtol=0, atol=1e-6)
        assert relative(outcome(result, layer), ideal(clients, weights, layer)) < 1e-6


def test_fedsvd_makes_A_orthonormal_even_if_nobody_learned_anything():
    start, clients, weights = round_of(0, [RANK] * 2, common_a=True)
    still = [{k: np.zeros_like(v) if "lora_B" in k else v for k, v in c.items()} for c in clients]
    shared = FedSVD().combine(1, LAYOUT, start, still, weights).common
    for layer in SHAPES:
        a = shared[f"{layer}.lora_A.weight"].reshape(RANK, -1)
        np.testing.assert_allclose(a @ a.T, np.eye(RANK), rtol=0, atol=1e-6)
        assert not product(shared, layer).any()


def test_fedsvd_refuses_clients_that_trained_A():
    start, clients, weights = round_of(0, [RANK] * 2, common_a=True)
    moved = "conv.lora_A.weight"
    clients[1] = clients[1] | {moved: np.nextafter(clients[1][moved], np.float32(9))}
    with pytest.raises(ConfigError, match=r"FedSVD needs a shared A, but clients changed conv\.lora_A"):
        FedSVD().combine(1, LAYOUT, start, clients, weights)


# --- FedRot ------------------------------------------------------------------------------------------


def rotated(rng: np.random.Generator, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same products from rotated factors."""
    turned = dict(arrays)
    for layer, (shape_a, shape_b) in SHAPES.items():
        q = np.linalg.qr(rng.normal(size=(RANK, RANK)))[0]
        a, b = (arrays[f"{layer}.lora_{x}.weight"] for x in "AB")
        a, b = a.reshape(RANK, -1), b.reshape(-1, RANK)
        turned[f"{layer}.lora_A.weight"] = (q.T @ a).reshape(shape_a).astype(np.float32)
        turned[f"{layer}.lora_B.weight"] = (b @ q).reshape(shape_b).astype(np.float32)
    return turned


@pytest.mark.parametrize("first_round", [True, False])
def test_rotations_of_one_adapter_average_to_it(first_round):
    """Where the plain mean loses nearly all: in the first round, with B = 0 at the start, as later."""
    rng = np.random.default_rng(0)
    learned = values(rng)
    start = {k: np.zeros_like(v) if first_round and "lora_B" in k else v for k, v in learned.items()}
    clients = [rotated(rng, learned) for _ in range(6)]
    result = FedRot().combine(1, LAYOUT, start, clients, [1 / 6] * 6)
    plain = {k: np.mean([client[k] for client in clients], 0) for k in learned}
    for layer in SHAPES:
        assert relative(outcome(result, layer), product(learned, layer)) < 1e-5
        assert relative(product(plain, layer), product(learned, layer)) > 0.5


def test_clients_that_did_not_turn_are_averaged_as_they_are():
    rng = np.random.default_rng(0)
    start = values(rng)
    clients = [{k: v * np.float32(scale) for k, v in start.items()} for scale in (0.5, 1.5, 2.5)]
    result = FedRot().combine(1, LAYOUT, start, clients, [0.5, 0.25, 0.25])
    for name in LAYOUT.names:
        np.testing.assert_allclose(result.common[name], start[name] * 1.25, rtol=0, atol=1e-5)


# --- size --------------------------------------------------------------------------------------------


@every_rule
def test_no_rule_forms_a_matrix_of_the_size_of_the_product(name):
    """A product of 50 000 x 50 000 has 20 GB."""
    large = 50_000
    layout = Layout((TensorSpec("x.A", (4, large), "A", "x"), TensorSpec("x.B", (large, 4), "B", "x")))
    start, clients, weights = round_of(0, [4] * 3, common_a=name == "FedSVD", layout=layout)
    tracemalloc.start()
    RULES[name]().combine(1, layout, start, clients, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
