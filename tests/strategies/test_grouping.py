"""Grouping by direction: the families that there are, whoever is named what, under numbers that stay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from fedsa_lora.errors import ConfigError
from strategies.grouping import MEMBER, Clusters, Grouping, clusters, cosines, matched

SIZE = 40
NOW = Clusters(groups=2, after=1, ema=0.0)


def families(sizes: list[int], seed: int, noise: float = 0.3) -> tuple[dict[str, np.ndarray], list[set[str]]]:
    """Updates of clients whose families have orthogonal directions, of any length, and who is in which."""
    rng = np.random.default_rng(seed)
    ways, _ = np.linalg.qr(rng.normal(size=(SIZE, len(sizes))))
    names = [str(n) for n in rng.permutation(sum(sizes))]
    found, truth = {}, []
    for family, size in enumerate(sizes):
        members, names = names[:size], names[size:]
        truth.append(set(members))
        for client in members:
            update = ways[:, family] + noise * rng.normal(size=SIZE) / np.sqrt(SIZE)
            found[client] = (rng.uniform(0.01, 100) * update).astype(np.float32)
    return found, truth


def parted(members: dict[str, int]) -> list[set[str]]:
    return [{c for c, its in members.items() if its == n} for n in sorted(set(members.values()))]


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4), seed=st.integers(0, 999))
def test_families_are_found_exactly_by_their_number_or_by_their_distance(sizes, seed):
    updates, truth = families(sizes, seed)
    for how in ({"groups": len(sizes)}, {"groups": None, "distance": 0.5}):
        grouping = Grouping(Clusters(**how, after=1))
        grouping.learn(1, updates)
        assert sorted(parted(grouping.members), key=min) == sorted(truth, key=min)


@settings(max_examples=30, deadline=None)
@given(number=st.integers(2, 9), groups=st.integers(1, 9), seed=st.integers(0, 999))
def test_groups_are_those_of_scipys_average_linkage_over_cosine_distance(number, groups, seed):
    rows = np.random.default_rng(seed).normal(size=(number, SIZE)).astype(np.float32)
    found = clusters({str(n): row for n, row in enumerate(rows)}, Clusters(groups=groups))
    labels = fcluster(linkage(pdist(rows, "cosine"), "average"), groups, "maxclust")
    expected = [{str(n) for n in np.flatnonzero(labels == label)} for label in set(labels)]
    assert sorted(map(set, found), key=min) == sorted(expected, key=min)
    assert len(found) == min(groups, number)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), clients=st.integers(3, 9), data=st.data())
def test_other_names_give_the_same_groups_under_those_names_and_order_is_nothing(seed, clients, data):
    rng = np.random.default_rng(seed)
    rounds = [{str(n): rng.normal(size=SIZE).astype(np.float32) for n in range(clients)} for _ in range(3)]
    named = dict(zip(rounds[0], data.draw(st.permutations(list(rounds[0]))), strict=True))
    order = data.draw(st.permutations(list(rounds[0])))
    plain, other = Grouping(NOW), Grouping(NOW)
    for round_, updates in enumerate(rounds, 1):
        plain.learn(round_, updates)
        other.learn(round_, {named[c]: updates[c] for c in order})
        expected = [{named[c] for c in group} for group in parted(plain.members)]
        assert sorted(parted(other.members), key=min) == sorted(expected, key=min)


def test_cosines_are_those_of_the_definition_and_none_with_nothing():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 6)).astype(np.float32)
    rows[2] = 0
    found = cosines(list(rows))
    for i, one in enumerate(rows.astype(float)):
        for j, two in enumerate(rows.astype(float)):
            lengths = np.linalg.norm(one) * np.linalg.norm(two)
            expected = 1.0 if i == j else one @ two / lengths if lengths else 0.0
            assert found[i, j] == pytest.approx(expected, abs=1e-12)


def test_a_direction_is_the_exponential_mean_of_updates_at_length_one():
    grouping, expected = Grouping(Clusters(ema=0.75, after=9)), np.zeros(SIZE)
    for round_ in range(1, 5):
        update = np.random.default_rng(round_).normal(size=SIZE).astype(np.float32) * 10**round_
        expected = 0.75 * expected + 0.25 * update / np.linalg.norm(update)
        grouping.learn(round_, {"7": update})
    np.testing.assert_allclose(grouping.directions["7"], expected, rtol=0, atol=1e-6)


def test_the_past_settles_what_one_noisy_round_does_not():
    """With noise far above the signal the mean direction finds the families that no round alone shows."""
    truth = [set("01234"), set("56789")]
    signal = np.random.default_rng(0).normal(size=SIZE) / np.sqrt(SIZE)
    found = {}
    for ema in (0.0, 0.95):
        grouping, rng = Grouping(Clusters(after=1, ema=ema)), np.random.default_rng(5)
        hits = []
        for round_ in range(1, 41):
            noise = rng.normal(size=(10, SIZE)) / np.sqrt(SIZE)
            updates = {str(n): (4 * row + (signal if n < 5 else -signal)) for n, row in enumerate(noise)}
            grouping.learn(round_, {c: u.astype(np.float32) for c, u in updates.items()})
            hits.append(sorted(parted(grouping.members), key=min) == truth)
        found[ema] = sum(hits[20:])
    assert found[0.95] == 20
    assert found[0.0] < 10


def test_numbers_stay_with_most_of_their_clients():
    before = dict.fromkeys("abcd", 0) | dict.fromkeys("efg", 3)
    assert matched([["e", "f", "a"], ["b", "c", "d", "g"]], before) == {0: 3, 1: 0}
    assert matched([["a", "b", "c", "d", "e", "f", "g"]], before) == {0: 0}
    assert matched([["a", "b"], ["c", "d"], ["e", "f", "g"]], before).keys() >= {2}
    before = dict.fromkeys("abcd", 0) | {"e": 3}
    assert matched([["a"], ["b", "c", "d", "e"]], before) == {1: 0}, "nobody of 3 is in the first group"


def test_a_new_group_goes_on_from_where_most_of_its_clients_come_from_and_a_tie_from_the_lower():
    grouping, way = Grouping(Clusters(groups=3, after=1, ema=0.0)), np.eye(SIZE, dtype=np.float32)
    assert grouping.learn(1, dict.fromkeys("abc", way[0]) | dict.fromkeys("def", way[1]) | {"g": way[2]}) == {
        0: 0, 1: 0, 2: 0,
    }  # fmt: skip
    of = {n: "".join(sorted(group)) for n, group in enumerate(parted(grouping.members))}
    assert of == {0: "abc", 1: "def", 2: "g"}
    # one of 0 and one of 1 leave together, 2 joins 0: the pair is new
    moves = dict.fromkeys("abg", way[0]) | dict.fromkeys("de", way[1]) | dict.fromkeys("cf", way[3])
    assert grouping.learn(2, moves) == {0: 0, 1: 1, 2: 0}
    assert parted(grouping.members) == [set("abg"), set("de"), set("cf")]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_groups_that_stay_as_they_are_keep_their_numbers(seed):
    updates, truth = families([3, 3, 2], seed)
    grouping = Grouping(Clusters(groups=3, after=1))
    grouping.learn(1, updates)
    numbers = dict(grouping.members)
    for round_ in (2, 3):
        assert grouping.learn(round_, families([3, 3, 2], seed)[0]) == {0: 0, 1: 1, 2: 2}
        assert grouping.members == numbers
    one, other = min(truth[0]), numbers[min(truth[1])]
    for round_ in range(4, 9):  # one client comes to be like those of another group
        moved = families([3, 3, 2], seed)[0]
        grouping.learn(round_, moved | {one: moved[min(truth[1])]})
    assert grouping.members == numbers | {one: other}


def test_who_was_not_sampled_keeps_its_group_and_who_never_was_is_with_the_most():
    updates, truth = families([4, 3], 1)
    grouping = Grouping(NOW)
    assert grouping.of("new") == 0
    grouping.learn(1, updates)
    numbers = dict(grouping.members)
    assert grouping.of("new") == grouping.largest == numbers[min(truth[0])]
    for round_, absent in enumerate(sorted(updates), 2):
        present = {c: u for c, u in families([4, 3], 1)[0].items() if c != absent}
        grouping.learn(round_, present)
        assert grouping.members == numbers


def test_who_sends_only_zeros_says_nothing_of_itself():
    updates, _ = families([4, 3], 1)
    grouping = Grouping(NOW)
    grouping.learn(1, updates | {"silent": np.zeros(SIZE, np.float32)})
    assert grouping.members.keys() == updates.keys()
    assert grouping.of("silent") == grouping.largest
    before = {c: d.copy() for c, d in grouping.directions.items()}
    grouping.learn(2, {c: np.zeros(SIZE, np.float32) for c in updates})
    assert all(np.array_equal(grouping.directions[c], d) for c, d in before.items())


@pytest.mark.parametrize(
    ("every", "rounds"), [(1, {3, 4, 5, 6, 7, 8}), (2, {3, 5, 7}), (4, {3, 7}), (0, {3})]
)
def test_clients_are_grouped_after_so_many_rounds_and_then_every_few(every, rounds):
    settings = Clusters(after=3, every=every)
    assert {round_ for round_ in range(1, 9) if settings.due(round_)} == rounds
    grouping, updates = Grouping(settings), families([2, 2], 0)[0]
    for round_ in (1, 2):
        assert grouping.learn(round_, updates) == {0: 0}
        assert grouping.members == {}
    assert grouping.learn(3, updates) == {0: 0, 1: 0}


def test_a_restored_grouping_goes_on_as_the_one_that_it_was():
    rng = np.random.default_rng(2)
    first, restored = (Grouping(Clusters(groups=3, after=2)) for _ in range(2))
    for round_ in range(1, 9):
        updates = {str(n): rng.normal(size=SIZE).astype(np.float32) for n in rng.permutation(8)[:5]}
        origins = first.learn(round_, updates)
        if round_ > 4:
            assert restored.learn(round_, updates) == origins
            assert restored.members == first.members
        if round_ == 4:
            state = {k: v.copy() for k, v in first.state().items()}
            restored.restore(state | {"held": np.ones(3, np.float32)})
            assert {k: v.tobytes() for k, v in restored.state().items()} == {
                k: v.tobytes() for k, v in state.items()
            }
            assert any(name.startswith(MEMBER) for name in state)


def test_what_is_out_of_range_is_refused():
    for settings_, said in (({"groups": None}, "either groups or distance"), ({"ema": 1.0}, "below 1")):
        with pytest.raises(ConfigError, match=said):
            Clusters(**settings_)
