"""Who takes part depends on the seed, the round and the clients' names, and on nothing of Flower's."""

import random

import pytest
from flwr.server import SimpleClientManager
from flwr.server.criterion import Criterion
from hypothesis import given, settings
from hypothesis import strategies as st
from named_nodes import Named

from fedsa_lora.errors import RunError
from strategies import Roster

NAMES = st.lists(st.text("abcxyz0189", min_size=1, max_size=4), min_size=1, max_size=12, unique=True)


def connected(names, order: random.Random) -> SimpleClientManager:
    """Nodes with random ids, registered in random order."""
    names, ids = list(names), order.sample(range(10**6), len(names))
    order.shuffle(names)
    manager = SimpleClientManager()
    for name, cid in zip(names, ids, strict=True):
        manager.register(Named(str(cid), {"client": name}))
    return manager


def drawn(roster: Roster, round_: int, manager, count: int) -> list[str]:
    return [roster.name(proxy) for proxy in roster.at(round_, manager).sample(count)]


@settings(max_examples=60, deadline=None)
@given(NAMES, st.data())
def test_a_sample_depends_on_seed_round_and_names_not_on_node_ids_or_their_order(names, data):
    seed, round_ = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 99))
    count = data.draw(st.integers(0, len(names)))
    samples = [
        drawn(Roster(seed, len(names), 0), round_, connected(names, random.Random(order)), count)
        for order in range(3)
    ]
    assert samples[0] == samples[1] == samples[2]
    assert samples[0] == sorted(set(samples[0]))
    assert len(samples[0]) == count
    assert set(samples[0]) <= set(names)


def test_a_sample_does_not_depend_on_the_rounds_before():
    manager = connected("abcdefgh", random.Random(0))
    steady, resumed = Roster(0, 8, 0), Roster(0, 8, 0)
    before = [drawn(steady, round_, manager, 3) for round_ in range(1, 7)]
    assert drawn(resumed, 6, manager, 3) == before[-1]


def test_rounds_and_seeds_draw_differently_and_every_client_in_its_turn():
    manager = connected("abcdefgh", random.Random(0))
    roster = Roster(0, 8, 0)
    rounds = [tuple(drawn(roster, round_, manager, 3)) for round_ in range(1, 101)]
    assert len(set(rounds)) > 30
    assert {name for sample in rounds for name in sample} == set("abcdefgh")
    assert rounds != [tuple(drawn(Roster(1, 8, 0), round_, manager, 3)) for round_ in range(1, 101)]
    counts = [sum(name in sample for sample in rounds) for name in "abcdefgh"]
    assert 20 < min(counts) <= max(counts) < 56  # 37.5 expected, standard deviation 4.8


def test_everyone_is_ordered_by_name_and_asked_once():
    manager = connected(["10", "9", "b", "a"], random.Random(0))
    roster = Roster(0, 4, 0)
    for round_ in range(3):
        assert [roster.name(proxy) for proxy in roster.everyone(manager)] == ["10", "9", "a", "b"]
        roster.at(round_, manager)
    assert {proxy.asked for proxy in manager.all().values()} == {1}


def test_a_node_that_comes_later_is_asked_then():
    manager = connected("ab", random.Random(0))
    roster = Roster(0, 2, 0)
    roster.everyone(manager)
    late = Named("late", {"client": "c"})
    assert roster.name(late) == "late"
    manager.register(late)
    assert [roster.name(proxy) for proxy in roster.everyone(manager)] == ["a", "b", "c"]


class Flowers(SimpleClientManager):
    """As in a ServerApp: nodes are registered when someone asks for all of them."""

    def all(self):
        if not self.clients:
            self.register(Named("1", {"client": "a"}))
        return super().all()


def test_a_node_that_is_there_is_not_waited_for():
    """Flower would look again after five seconds, in every run."""
    roster = Roster(0, 1, wait_seconds=0)
    assert [roster.name(proxy) for proxy in roster.everyone(Flowers())] == ["a"]


def test_two_nodes_of_one_client_end_the_run_with_its_name():
    manager = SimpleClientManager()
    for cid, name in (("1", "berlin"), ("2", "paris"), ("3", "berlin")):
        manager.register(Named(cid, {"client": name}))
    with pytest.raises(RunError, match=r"same client id \['berlin'\]"):
        Roster(0, 3, 0).everyone(manager)


@pytest.mark.parametrize("properties", [{}, {"client": 7}, {"name": "berlin"}])
def test_a_node_that_does_not_say_who_it_is_ends_the_run(properties):
    manager = SimpleClientManager()
    manager.register(Named("42", properties))
    with pytest.raises(RunError, match="node 42 does not report its client id: no such client here"):
        Roster(0, 1, 0).everyone(manager)


def test_too_few_clients_after_the_wait_end_the_run_with_how_many_there_are():
    manager = connected("ab", random.Random(0))
    with pytest.raises(RunError, match=r"2 of 3 clients are connected after 1 s.*federation\.clients"):
        Roster(0, 3, wait_seconds=1).at(1, manager)
    assert len(Roster(0, 2, wait_seconds=1).everyone(manager)) == 2


def test_a_strategy_that_asks_for_more_than_there_are_is_told():
    view = Roster(0, 2, 0).at(1, connected("ab", random.Random(0)))
    with pytest.raises(RunError, match=r"asks for 3 clients, 2 are there.*fraction_fit"):
        view.sample(3)


def test_a_criterion_is_heeded():
    class OnlyB(Criterion):
        def select(self, client):
            return client.answer["client"] == "b"

    roster = Roster(0, 3, 0)
    view = roster.at(1, connected("abc", random.Random(0)))
    assert [roster.name(proxy) for proxy in view.sample(1, criterion=OnlyB())] == ["b"]
    with pytest.raises(RunError, match="asks for 2 clients, 1 are there"):
        view.sample(2, criterion=OnlyB())


def test_the_view_of_a_round_is_the_manager_with_samples_of_its_own():
    manager = connected("abc", random.Random(0))
    view = Roster(0, 3, 0).at(1, manager)
    assert view.num_available() == 3
    assert view.all() == manager.all()
    assert view.wait_for(3)
    assert not view.wait_for(4)
    late = Named("late", {"client": "d"})
    assert view.register(late)
    assert manager.num_available() == 4
    view.unregister(late)
    assert manager.num_available() == 3
    assert view.num_available() == 3


def test_after_the_wait_the_least_share_is_enough_to_start_and_later_those_that_are_left():
    manager = connected("abc", random.Random(0))
    roster = Roster(0, 5, wait_seconds=0, least=0.5)
    assert len(roster.everyone(manager)) == 3
    for proxy in [*manager.all().values()][:2]:
        manager.unregister(proxy)
    assert len(roster.everyone(manager)) == 1
    with pytest.raises(RunError, match=r"2 of 5 clients are connected.*federation\.min_clients"):
        Roster(0, 5, 0, least=0.5).everyone(connected("ab", random.Random(0)))


def test_a_node_that_says_no_name_is_left_out_where_enough_others_do_and_asked_again(caplog):
    manager = connected("ab", random.Random(0))
    silent = Named("42", {})
    manager.register(silent)
    roster = Roster(0, 3, 0, least=0.5)
    assert [roster.name(proxy) for proxy in roster.everyone(manager)] == ["a", "b"]
    assert "node 42 does not report its client id" in caplog.text
    silent.answer = {"client": "c"}
    assert [roster.name(proxy) for proxy in roster.everyone(manager)] == ["a", "b", "c"]


@given(st.integers(1, 10), st.floats(1, 4), st.data())
def test_more_are_sampled_by_the_factor_as_far_as_there_are_any(needed, factor, data):
    there = data.draw(st.integers(1, 10))
    manager = connected([f"c{i}" for i in range(there)], random.Random(0))
    view = Roster(0, 10, 0, least=0, over_select=factor).at(1, manager)
    assert view.num_available() == 10
    sampled = view.sample(needed)
    assert min(needed, there) <= len(sampled) <= there
    assert view.needed == needed
    assert len(sampled) in (there, pytest.approx(factor * needed, abs=1))
    assert len(sampled) == len(set(sampled))


def test_who_is_excluded_is_not_sampled_unless_the_minimum_needs_it():
    manager, roster = connected("abcdef", random.Random(0)), Roster(0, 6, 0)
    for excluded, drawn, left_out in (("bc", "adef", "bc"), ("abcd", "abcdef", "")):
        view = roster.at(1, manager, excluded, min_results=0.5)
        assert [roster.name(proxy) for proxy in view.sample(6)] == list(drawn)
        assert view.left_out == list(left_out)


def test_without_exclusion_and_over_selection_a_sample_is_what_it_was():
    manager, plain = connected("abcdef", random.Random(0)), Roster(3, 6, 0)
    other = Roster(3, 6, 0, least=0.5, over_select=1.0)
    for round_ in range(1, 9):
        expected = [plain.name(proxy) for proxy in plain.at(round_, manager).sample(3)]
        assert [other.name(p) for p in other.at(round_, manager, "", 0.5).sample(3)] == expected
