"""Laws of the plans that decide what the next round shares, and of the measures they go by."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsa_lora.errors import SplitError, WireError
from fedsa_lora.exchange.adaptive import Importance, LeastVariance
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from strategies.plans.importance import ByImportance, disagreement
from strategies.plans.variance import ByVariance, relative_variance
from strategies.rules.updates import Update


def pool(blocks: int = 3, roles: str = "A", modules: tuple[str, ...] = ("query", "value")) -> Layout:
    """Adapters of rank 2 of ``modules`` in ``blocks`` blocks; B is larger than A."""
    shapes = {"A": (2, 3), "B": (5, 2)}
    layers = [f"layer.{i}.attention.{module}" for i in range(blocks) for module in modules]
    return Layout(tuple(TensorSpec(f"{x}.lora_{r}", shapes[r], r, x) for x in layers for r in roles))


def policy(**changes) -> Importance:
    return replace(Importance(pool=("A", "B"), allow=("A", "B"), ema=0.0), **changes)


def taught(plan: ByImportance, *rounds, client: str = "0") -> ByImportance:
    """The plan after some rounds of one client's scores."""
    for scores in rounds:
        plan.hear({client: scores}, {client: 1.0}, {})
    return plan


def one_kind(count: int) -> Layout:
    """Tensors that are all of one kind, so that scores are compared as they are."""
    return pool(count, modules=("query",))


SCORES = st.floats(0, 2.0**100, width=32)
ROLES = st.sampled_from(["A", "AB"])
RATIONAL = st.integers(0, 1000).map(float)  # differ by more than rounding, or not at all


def values(layout: Layout, elements=SCORES):
    return st.lists(elements, min_size=len(layout.names), max_size=len(layout.names))


# --- the threshold -----------------------------------------------------------------------------------


@given(st.data(), st.integers(1, 5), ROLES)
def test_a_threshold_of_one_half_shares_exactly_the_upper_half_of_each_role(data, blocks, roles):
    layout = pool(blocks, roles, ("query",))
    plan = taught(ByImportance(policy(), layout), data.draw(values(layout)))
    shared = plan.shared("0")
    counts = Counter(spec.role for spec in layout if spec.name in shared)
    assert counts == dict.fromkeys(roles, (blocks + 1) // 2)
    for role in roles:  # the upper half, by the levels that are told
        levels = {spec.name: plan.levels("0")[spec.name] for spec in layout if spec.role == role}
        assert sorted(levels.values()) == [(i + 0.5) / blocks for i in range(blocks)]
        lowest = min(levels[name] for name in shared & set(levels))
        assert all(levels[name] < lowest for name in set(levels) - shared)


@given(st.data(), st.booleans(), st.integers(1, 3), st.floats(0, 0.5))
def test_the_corners_of_the_threshold_are_exact_from_the_first_round_on(data, federation, hysteresis, margin):
    layout = pool(2, "AB")
    options = {
        "hysteresis": hysteresis,
        "margin": margin,
        "scope": "federation" if federation else "client",
        "ema": 0.5,
    }
    plans = {t: ByImportance(policy(threshold=t, **options), layout) for t in (0.0, 1.0, 1.5)}
    for _ in range(4):
        assert plans[0.0].shared("0") == set(layout.names)
        assert plans[1.0].shared("0") == plans[1.5].shared("0") == set()
        scores = data.draw(values(layout))
        for plan in plans.values():
            taught(plan, scores)


def test_the_highest_scores_are_shared_and_equal_ones_go_by_name():
    layout = one_kind(4)
    names = layout.names
    plan = taught(ByImportance(policy(), layout), [1.0, 4.0, 3.0, 2.0])
    assert plan.shared("0") == {names[1], names[2]}
    assert list(plan.levels("0").values()) == [0.125, 0.875, 0.625, 0.375]
    plan = taught(ByImportance(policy(), layout), [1.0, 1.0, 1.0, 1.0])
    assert list(plan.levels("0").values()) == [0.125, 0.375, 0.625, 0.875]


def test_before_anything_is_learned_all_is_shared_and_no_level_is_told():
    layout = pool(2, "AB")
    plan = ByImportance(policy(threshold=0.9), layout)
    assert plan.shared("0") == set(layout.names)
    assert plan.levels("0") == {}
    plan.hear({}, {}, {})  # a round in which all failed
    assert plan.shared("0") == set(layout.names)


def test_a_pool_of_nothing_shares_nothing():
    plan = taught(ByImportance(policy(threshold="heterogeneity"), Layout(())), [])
    assert plan.shared("0") == frozenset()
    assert plan.levels("0") == {}


def test_a_tensor_comes_back_when_its_level_reaches_the_threshold():
    layout = one_kind(3)
    plan = taught(ByImportance(policy(threshold=0.5), layout), [1.0, 2.0, 3.0])
    assert plan.shared("0") == set(layout.names[1:])
    taught(plan, [2.0, 1.0, 3.0])
    assert plan.shared("0") == {layout.names[0], layout.names[2]}


# --- normalisation -----------------------------------------------------------------------------------


@given(st.data(), st.integers(-20, 20))
def test_rescaling_every_score_changes_no_level(data, exponent):
    layout = pool(3, "AB")
    scores = data.draw(values(layout, RATIONAL))
    plain = taught(ByImportance(policy(), layout), scores).levels("0")
    for factor in (2.0**exponent, 3.0, 0.1):
        scaled = taught(ByImportance(policy(), layout), [factor * s for s in scores])
        assert scaled.levels("0") == plain


@given(st.data())
def test_a_and_b_are_ranked_apart_so_that_larger_scores_of_b_change_nothing(data):
    layout = pool(3, "AB")
    scores = data.draw(values(layout))
    larger = [8 * s if spec.role == "B" else s for s, spec in zip(scores, layout, strict=True)]
    one, other = (taught(ByImportance(policy(), layout), s) for s in (scores, larger))
    assert one.levels("0") == other.levels("0")
    assert one.shared("0") == other.shared("0")


@given(st.data())
def test_tensors_of_one_kind_are_compared_with_each_other(data):
    """All scores of one module, in every block, may be as much larger as they like."""
    layout = pool(3)
    scores = data.draw(values(layout))
    larger = [16 * s if "value" in spec.layer else s for s, spec in zip(scores, layout, strict=True)]
    one, other = (taught(ByImportance(policy(), layout), s) for s in (scores, larger))
    assert one.levels("0") == other.levels("0")


def test_what_differs_by_rounding_alone_goes_by_name():
    layout = pool(5)
    scores = [float(1 + i // 2) for i in range(10)]  # the same for query and value
    tied = taught(ByImportance(policy(), layout), scores).levels("0")
    assert list(tied.values()) == [(i + 0.5) / 10 for i in range(10)]
    for factor in (0.1, 0.3, 0.7, 1 / 3, 1e-9):
        scaled = [s * factor if i % 2 == 0 else s for i, s in enumerate(scores)]
        assert taught(ByImportance(policy(), layout), scaled).levels("0") == tied


def test_kinds_are_brought_to_one_scale_before_they_are_ranked():
    layout = pool(2)  # query and value of two blocks
    plan = taught(ByImportance(policy(), layout), [1.0, 100.0, 9.0, 300.0])
    # relative to their kind: query 0.2 and 1.8, value 0.5 and 1.5
    assert list(plan.levels("0").values()) == [0.125, 0.375, 0.875, 0.625]


def test_blocks_of_one_kind_are_found_wherever_the_number_stands():
    specs = [TensorSpec(f"{i}.x", (1,), "A", f"{i}.x") for i in (1, 2)]
    specs += [TensorSpec(f"h.{i}", (1,), "A", f"h.{i}") for i in (1, 2)]
    plan = taught(ByImportance(policy(), Layout(tuple(specs))), [1.0, 3.0, 100.0, 200.0])
    assert list(plan.levels("0").values()) == [0.125, 0.875, 0.375, 0.625]  # 0.5, 1.5, 0.67, 1.33


# --- clients -----------------------------------------------------------------------------------------


@given(st.data(), st.permutations("abcd"))
def test_the_order_in_which_clients_arrive_changes_no_bit(data, order):
    layout = pool(2, "AB")
    scores = {client: data.draw(values(layout)) for client in "abcd"}
    weights = {client: data.draw(st.floats(0.1, 100)) for client in "abcd"}
    sorted_, permuted = ByImportance(policy(), layout), ByImportance(policy(), layout)
    sorted_.hear(scores, weights, {})
    permuted.hear({c: scores[c] for c in order}, {c: weights[c] for c in order}, {})
    for key, value in sorted_.state().items():
        np.testing.assert_array_equal(value, permuted.state()[key])


def test_clients_are_averaged_by_their_examples():
    layout = one_kind(2)
    votes = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    for weights, winner in (({"a": 30, "b": 10}, 0), ({"a": 10, "b": 30}, 1), ({"a": 0, "b": 1}, 1)):
        plan = ByImportance(policy(), layout)
        plan.hear(votes, weights, {})
        assert plan.shared("a") == plan.shared("b") == plan.shared("new") == {layout.names[winner]}


def test_scores_as_large_as_a_float_do_not_overflow():
    layout = one_kind(2)
    plan = ByImportance(policy(ema=0.5), layout)
    for _ in range(2):
        plan.hear({c: [1.0, 1.7e308] for c in "abc"}, dict.fromkeys("abc", 1.0), {})
        assert plan.shared("a") == {layout.names[1]}
    assert np.isfinite(plan.state()["known/"]).all()


def test_no_client_outvotes_the_others_by_the_size_of_its_scores():
    """With ten medians at most, eleven others of its weight and one mind are more."""
    layout = one_kind(2)
    honest = {f"{k}": [1.0, 0.0] for k in range(11)}
    weights = dict.fromkeys([*honest, "x"], 1.0)
    for size in (1.0, 1e3, 1e38, 1.7e308):
        plan = ByImportance(policy(ema=0.0), layout)
        plan.hear(honest | {"x": [0.0, size]}, weights, {})
        assert plan.shared("0") == {layout.names[0]}


def test_scores_of_which_none_exceeds_ten_medians_are_averaged_as_they_are():
    layout, rng = one_kind(3), np.random.default_rng(0)
    scores = {
        c: (size * rng.uniform(0.5, 1, 3)).tolist() for c, size in zip("abcd", (0, 1, 2, 9), strict=True)
    }
    plan = ByImportance(policy(ema=0.0), layout)
    plan.hear(scores, dict.fromkeys(scores, 1.0), {})
    expected = np.sum([0.25 * np.array(row) for row in scores.values()], axis=0)
    np.testing.assert_array_equal(plan.state()["known/"][0], expected)


def test_a_round_in_which_nobody_has_weight_teaches_nothing():
    plan = ByImportance(policy(), one_kind(2))
    plan.hear({"a": [1.0, 0.0]}, {"a": 0}, {})
    assert plan.levels("a") == {}


def test_with_scope_client_each_goes_by_its_own_scores_and_one_not_heard_keeps_its_own():
    layout = one_kind(2)
    plan = ByImportance(policy(scope="client"), layout)
    plan.hear({"a": [1.0, 0.0], "b": [0.0, 1.0]}, {"a": 1, "b": 9}, {})
    assert plan.shared("a") == {layout.names[0]}
    assert plan.shared("b") == {layout.names[1]}
    assert plan.shared("new") == set(layout.names)
    before = plan.state()["known/a"]
    plan.hear({"b": [1.0, 0.0]}, {"b": 1}, {})
    np.testing.assert_array_equal(plan.state()["known/a"], before)
    assert plan.shared("b") == {layout.names[0]}


@pytest.mark.parametrize("bad", [[1.0], [1.0, np.nan], [1.0, np.inf], [1.0, -1.0], [[1.0, 1.0]]])
def test_scores_that_are_none_are_refused_by_name_and_nothing_is_learned(bad):
    plan = ByImportance(policy(), one_kind(2))
    with pytest.raises(WireError, match="client b: expected 2 finite scores of at least 0"):
        plan.hear({"a": [1.0, 0.0], "b": bad}, {"a": 1, "b": 1}, {"x": 1.0})
    assert plan.levels("a") == {}


# --- memory ------------------------------------------------------------------------------------------


def test_scores_are_smoothed_over_rounds_and_the_first_is_taken_as_it_is():
    layout = one_kind(2)
    plan = ByImportance(policy(ema=0.75), layout)
    expected = [([8.0, 0.0], [8.0, 0.0]), ([0.0, 4.0], [6.0, 1.0]), ([0.0, 4.0], [4.5, 1.75])]
    for scores, smoothed in expected:
        taught(plan, scores)
        np.testing.assert_array_equal(plan.state()["known/"][0], smoothed)
        assert plan.shared("0") == {layout.names[0]}
    taught(plan, [0.0, 8.0], [0.0, 8.0])  # 2.53125 and 4.484375
    assert plan.shared("0") == {layout.names[1]}


def test_hysteresis_waits_for_rounds_in_a_row():
    layout = one_kind(2)
    first, second = layout.names
    plan = ByImportance(policy(hysteresis=2), layout)
    up, down = [1.0, 0.0], [0.0, 1.0]
    seen = []
    for scores in (up, down, down, up, down, up, up):
        taught(plan, scores)
        seen.append(plan.shared("0"))
    both, one, two = {first, second}, {first}, {second}
    #               up    down  down up   down up   up
    assert seen == [both, both, two, two, two, two, one]


def test_a_margin_leaves_those_near_the_threshold_where_they_are():
    layout = one_kind(4)  # levels .125, .375, .625, .875
    plan = taught(ByImportance(policy(margin=0.2), layout), [1.0, 2.0, 3.0, 4.0])
    assert plan.shared("0") == set(layout.names[1:])  # only .125 is below .3
    taught(plan, [3.0, 1.0, 2.0, 4.0])  # .625 is not above .7, so the first stays out
    assert plan.shared("0") == {layout.names[2], layout.names[3]}
    taught(plan, [4.0, 1.0, 2.0, 3.0])
    assert plan.shared("0") == {layout.names[0], layout.names[2], layout.names[3]}


@given(st.data(), st.sampled_from(["federation", "client"]), st.sampled_from([0.5, "heterogeneity"]))
def test_a_state_that_is_restored_has_the_same_future(data, scope, threshold):
    layout = pool(2, "AB")
    options = policy(
        scope=scope, threshold=threshold, ema=0.7, hysteresis=2, margin=0.05, budget=100, score="taylor"
    )

    def some_round():
        clients = data.draw(st.sets(st.sampled_from(["a", "b", "x/y"])))
        found = data.draw(st.dictionaries(st.sampled_from(layout.names), st.floats(0, 1)))
        return {c: data.draw(values(layout)) for c in clients}, dict.fromkeys(clients, 2.0), found

    one, other = ByImportance(options, layout), ByImportance(options, layout)
    for _ in range(2):
        one.hear(*some_round())
    other.hear({"gone": [1.0] * len(layout.names)}, {"gone": 1.0}, {})
    state = {key: value.copy() for key, value in one.state().items()}
    assert {value.dtype for value in state.values()} == {np.dtype(np.float64)}
    other.restore(state)
    for _ in range(3):
        assert other.threshold == one.threshold
        for client in ("a", "b", "x/y", "gone"):
            assert other.shared(client) == one.shared(client)
            assert other.levels(client) == one.levels(client)
        happened = some_round()
        one.hear(*happened)
        other.hear(*happened)
    for key, value in one.state().items():
        np.testing.assert_array_equal(value, other.state()[key])


def test_a_state_of_another_pool_is_refused():
    plan = taught(ByImportance(policy(), pool(2)), [1.0] * 4)
    with pytest.raises(SplitError, match=r"scores of another pool: expected arrays \(3, 6\)"):
        ByImportance(policy(), pool(3)).restore(plan.state())


# --- the budget --------------------------------------------------------------------------------------


@given(st.data(), st.integers(24, 300), st.sampled_from([0.0, 0.3, "heterogeneity"]))
def test_the_budget_is_never_exceeded_and_no_tensor_is_left_out_that_would_fit(data, budget, threshold):
    layout = pool(2, "AB")
    free = ByImportance(policy(threshold=threshold, hysteresis=2), layout)
    plan = ByImportance(policy(threshold=threshold, hysteresis=2, budget=budget), layout)
    for scores in [None, *(data.draw(values(layout)) for _ in range(3))]:
        if scores is not None:
            taught(plan, scores)
            taught(free, scores)
        shared, size = plan.shared("0"), {spec.name: 4 * spec.size for spec in layout}
        left = budget - sum(size[name] for name in shared)
        assert left >= 0
        assert shared <= free.shared("0")
        assert all(size[name] > left for name in free.shared("0") - shared)


def test_the_budget_takes_the_highest_levels_and_of_equal_ones_the_first_by_name():
    layout = pool(2, "AB", ("query",))  # 24 bytes for A, 40 for B; levels .25 and .75 of each
    a0, b0, a1, _ = layout.names
    plan = ByImportance(policy(threshold=0.0, budget=70), layout)
    assert plan.shared("0") == {a0, b0}
    taught(plan, [1.0, 9.0, 2.0, 1.0])
    assert plan.shared("0") == {a1, b0}
    plan = taught(ByImportance(policy(threshold=0.0, budget=50), layout), [1.0, 9.0, 2.0, 1.0])
    assert plan.shared("0") == {b0}
    plan = taught(ByImportance(policy(threshold=0.0, budget=50), layout), [1.0, 1.0, 2.0, 9.0])
    assert plan.shared("0") == {a1, a0}  # the B on top does not fit at all


def test_a_budget_in_which_nothing_fits_is_refused():
    with pytest.raises(SplitError, match=r"split\.budget=23 bytes: the smallest of 8 tensors takes 24"):
        ByImportance(policy(budget=23), pool(2, "AB"))


# --- heterogeneity -----------------------------------------------------------------------------------


def updates_of(layout: Layout, *vectors: np.ndarray):
    return [update_of(layout.names, vector) for vector in vectors]


def update_of(names, vector: np.ndarray) -> Update:
    return Update("", 1, frozenset(names), None, vector.astype(np.float32))


@pytest.mark.parametrize("blocks", [3, 4, 5])
def test_clients_that_agree_share_all_and_orthogonal_ones_half_and_opposite_ones_the_top(blocks):
    layout = pool(blocks, "AB", ("query",))
    rng = np.random.default_rng(0)
    same = rng.normal(size=layout.size)
    signs = np.where(np.arange(layout.size) % 2, 1.0, -1.0)  # orthogonal: every tensor has an even size
    half = (blocks + 1) // 2
    for others, threshold, expected in (
        ([same, 3 * same], 0.0, blocks),
        ([np.ones(layout.size), signs], 0.5, half),
        ([same, -same], (blocks - 0.5) / blocks, 1),
    ):
        plan = ByImportance(policy(threshold="heterogeneity"), layout)
        assert plan.threshold == 0
        found = disagreement(layout, [updates_of(layout, *others)])
        plan.hear({"0": list(rng.uniform(size=len(layout.names)))}, {"0": 1}, found)
        assert plan.threshold == threshold
        counts = Counter(spec.role for spec in layout if spec.name in plan.shared("0"))
        assert counts == {"A": expected, "B": expected}


def test_the_threshold_follows_what_was_measured_last_and_stays_without_a_measure():
    layout = one_kind(4)
    plan = ByImportance(policy(threshold="heterogeneity", ema=0.9), layout)
    for measured, expected in (({"x": 0.2, "y": 0.6}, 0.4), ({}, 0.4), ({"x": 0.1}, 0.1), ({"x": 1}, 0.875)):
        plan.hear({"0": [1.0, 2.0, 3.0, 4.0]}, {"0": 1}, measured)
        assert plan.threshold == pytest.approx(expected, abs=1e-15)
        assert len(plan.shared("0")) == sum(level >= expected for level in (0.125, 0.375, 0.625, 0.875))


@given(st.data(), st.integers(1, 3), st.floats(0, 0.9))
def test_however_much_clients_disagree_each_role_shares_something(data, hysteresis, margin):
    layout = pool(2, "AB")
    options = policy(threshold="heterogeneity", hysteresis=hysteresis, margin=margin)
    plan = ByImportance(options, layout)
    for _ in range(6):
        plan.hear({"0": data.draw(values(layout))}, {"0": 1}, {"x": data.draw(st.floats(0.5, 1))})
        assert {spec.role for spec in layout if spec.name in plan.shared("0")} == {"A", "B"}


# --- the measures ------------------------------------------------------------------------------------


@st.composite
def some_updates(draw):
    """A pool, and updates in which clients share different tensors and some did not move."""
    layout = pool(2, "AB")
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    updates = []
    for _ in range(draw(st.integers(0, 6))):
        names = draw(st.frozensets(st.sampled_from(layout.names)))
        still = draw(st.frozensets(st.sampled_from(layout.names)))
        vector = np.zeros(layout.size, np.float32)
        for name in names - still:
            size = layout.span(name).stop - layout.span(name).start
            vector[layout.span(name)] = 10.0 ** rng.integers(-6, 3) * rng.normal(size=size)
        updates.append(update_of(names, vector))
    return layout, updates


def parts_of(layout: Layout, updates, name: str) -> list[np.ndarray]:
    return [u.values[layout.span(name)].astype(float) for u in updates if name in u.shared]


@given(some_updates())
def test_disagreement_is_the_mean_over_pairs(drawn):
    layout, updates = drawn
    expected = {}
    for name in layout.names:
        parts = [part for part in parts_of(layout, updates, name) if part.any()]
        pairs = [(1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)) / 2 for u, v in combinations(parts, 2)]
        if pairs:
            expected[name] = np.mean(pairs)
    found = disagreement(layout, [updates])
    assert found == pytest.approx(expected, abs=1e-11)
    assert all(0 <= value <= 1 for value in found.values())


@given(some_updates(), st.integers(-10, 10))
def test_disagreement_looks_at_directions_alone(drawn, exponent):
    layout, updates = drawn
    longer = [
        replace(u, values=u.values * np.float32(2.0**exponent if i else 1)) for i, u in enumerate(updates)
    ]
    assert disagreement(layout, [longer]) == disagreement(layout, [updates])


@given(some_updates())
def test_relative_variance_is_that_of_numpy(drawn):
    layout, updates = drawn
    expected = {}
    for name in layout.names:
        parts = parts_of(layout, updates, name)
        if len(parts) > 1:
            square = np.mean(np.square(parts), axis=0).sum()
            expected[name] = np.var(parts, axis=0).sum() / square if square else 0.0
    assert relative_variance(layout, [updates]) == pytest.approx(expected, abs=1e-12)


# --- least variance ----------------------------------------------------------------------------------


def differing(layout: Layout, *by_block: float):
    """Two clients that differ by so much in each block."""
    noise = np.ones(layout.size)
    for spec in layout:
        noise[layout.span(spec.name)] *= by_block[int(spec.layer.split(".")[1])]
    return updates_of(layout, np.ones(layout.size) + noise, np.ones(layout.size) - noise)


def of_blocks(layout: Layout, *numbers: int) -> set[str]:
    return {spec.name for spec in layout if int(spec.layer.split(".")[1]) in numbers}


def test_all_is_shared_while_it_is_measured_and_then_the_blocks_that_differ_least():
    layout = pool(4)
    plan = ByVariance(LeastVariance(count=2, measure=2), layout)
    seen = [plan.shared("0")]
    for round_, spread in enumerate([(0.1, 0.3, 0.45, 1), (1, 0.45, 0.3, 0.1), (0, 0, 9, 9)], start=1):
        plan.learn(round_, [differing(layout, *spread)])
        seen.append(plan.shared("0"))
    assert seen[:2] == [set(layout.names)] * 2
    assert seen[2:] == [of_blocks(layout, 1, 2)] * 2  # by the mean of both rounds, and of no later one


def test_it_is_measured_again_and_the_new_measure_replaces_the_old():
    layout = pool(3)
    plan = ByVariance(LeastVariance(count=1, measure=1, again=2), layout)
    plan.learn(1, [differing(layout, 0.1, 0.5, 0.4)])
    assert plan.shared("0") == of_blocks(layout, 0)
    plan.learn(2, [differing(layout, 9, 9, 9)])
    assert plan.shared("0") == set(layout.names)  # round 3 measures
    plan.learn(3, [differing(layout, 0.35, 0.5, 0.3)])
    assert plan.shared("0") == of_blocks(layout, 2)


def test_a_round_of_one_client_measures_nothing():
    layout = pool(3)
    plan = ByVariance(LeastVariance(), layout)
    plan.learn(1, [differing(layout, 1, 2, 3)[:1]])
    assert plan.shared("0") == set(layout.names)


def test_tensors_outside_of_the_blocks_and_blocks_that_nobody_shared_come_last():
    inside = pool(3)
    layout = Layout((*inside, TensorSpec("embedding.lora_A", (2, 4), "A", "embedding")))
    plan = ByVariance(LeastVariance(count=2), layout)
    assert "embedding.lora_A" in plan.shared("0")
    shared = of_blocks(inside, 1, 2) | {"embedding.lora_A"}
    rng = np.random.default_rng(0)
    plan.learn(1, [[update_of(shared, rng.normal(size=layout.size)) for _ in range(3)]])
    assert plan.shared("0") == of_blocks(inside, 1, 2)


def test_a_block_with_fewer_adapters_has_no_advantage():
    layout = Layout(tuple(spec for spec in pool(2) if spec.layer != "layer.1.attention.value"))
    plan = ByVariance(LeastVariance(), layout)
    plan.learn(1, [differing(layout, 0.5, 0.6)])
    assert plan.shared("0") == of_blocks(layout, 0)


def test_more_blocks_than_there_are_is_an_error_that_names_both():
    with pytest.raises(SplitError, match=r"split\.count=4: the model has 3 layers"):
        ByVariance(LeastVariance(count=4), pool(3))


@given(st.integers(0, 4), st.data())
def test_a_variance_that_is_restored_has_the_same_future(before, data):
    layout = pool(3)
    options = LeastVariance(count=1, measure=2, again=2)
    one, other = ByVariance(options, layout), ByVariance(options, layout)
    spreads = data.draw(st.lists(st.tuples(*[st.floats(0, 2)] * 3), min_size=7, max_size=7))
    for round_ in range(1, before + 1):
        one.learn(round_, [differing(layout, *spreads[round_])])
    other.learn(1, [differing(layout, 1, 0, 1)])
    other.restore({key: value.copy() for key, value in one.state().items()})
    for round_ in range(before + 1, before + 3):
        assert other.shared("0") == one.shared("0")
        for plan in (one, other):
            plan.learn(round_, [differing(layout, *spreads[round_])])
    assert other.shared("0") == one.shared("0")


def test_variances_of_another_model_are_refused():
    plan = ByVariance(LeastVariance(), pool(3))
    plan.learn(1, [differing(pool(3), 1, 2, 3)])
    with pytest.raises(SplitError, match="variances of 3 layers, but the model has 2"):
        ByVariance(LeastVariance(), pool(2)).restore(plan.state())
