"""Whose name holds, by key and without keys, and what a node that does not answer costs."""

import threading

import pytest
from faulty_grid import Clock
from flwr.server import SimpleClientManager
from hypothesis import given, settings
from hypothesis import strategies as st
from named_nodes import RAISED, SILENT, Named
from remarks import remarks
from server_side import Server, some_updates

from fedsa_lora.errors import ConfigError, RunError
from strategies import Roster
from strategies.round import naming, roster

KEYS = {b"key of north": "north", b"key of south": "south", b"key of west": "west"}
NAMES = [*KEYS.values(), "nobody"]


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    for module in (roster, naming):
        monkeypatch.setattr(module, "time", clock)
    return clock


def managed(*nodes: Named) -> SimpleClientManager:
    manager = SimpleClientManager()
    for node in nodes:
        manager.register(node)
    return manager


def node(cid: int, name: str, key: str = "") -> Named:
    """A node that says a name, with the key of that client or of another."""
    return Named(str(cid), {"client": name}, f"key of {key or name}".encode())


def clients(who: Roster, manager: SimpleClientManager) -> dict[str, str]:
    """Node id by client of those that are there."""
    return {who.name(proxy): proxy.cid for proxy in who.everyone(manager)}


@pytest.mark.case(32)
def test_a_node_that_takes_another_name_is_refused_by_its_key_and_the_client_stays_who_it_was():
    manager = managed(node(1, "north"), node(2, "south"))
    who = Roster(0, 2, 0, registry=lambda: KEYS)
    assert clients(who, manager) == {"north": "1", "south": "2"}
    assert who.remarks == []
    thief, stranger = node(3, "north", "west"), node(4, "north", "stranger")
    manager.register(thief)
    manager.register(stranger)
    for _ in range(2):
        assert clients(who, manager) == {"north": "1", "south": "2"}
        assert [str(remark) for remark in who.remarks] == [
            "client west: node 3 claims to be north, but has the key of west",
            "node 4 has a key that is not in the registry",
        ]
        assert {remark.kind for remark in who.remarks} == {"rejected"}
    assert stranger.asked == 0
    thief.answer = {"client": "west"}
    assert clients(who, manager) == {"north": "1", "south": "2", "west": "3"}


@pytest.mark.case(32)
def test_a_key_that_changes_during_a_run_is_seen_in_the_next_phase():
    manager, known = managed(node(1, "north"), node(2, "south")), dict(KEYS)
    who = Roster(0, 2, 0, least=0.5, registry=lambda: known)
    assert clients(who, manager) == {"north": "1", "south": "2"}
    manager.clients["2"].key = b"key of west"
    assert clients(who, manager) == {"north": "1"}
    assert [str(remark) for remark in who.remarks] == [
        "client west: node 2 claims to be south, but has the key of west"
    ]
    manager.clients["2"].key = b"key of south"
    del known[b"key of south"]
    assert clients(who, manager) == {"north": "1"}
    assert [str(remark) for remark in who.remarks] == ["node 2 has a key that is not in the registry"]


@pytest.mark.case(32)
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1, max_size=8), st.data())
def test_whoever_says_what_and_in_any_order_a_client_is_a_node_with_its_key(told, data):
    """(said, key of) for each node; keys are unique at Flower, so a second node of one key has none here."""
    seen, nodes = set(), []
    for cid, (said, key) in enumerate(told, 1):
        nodes.append(Named(str(cid), {"client": said}, b"" if key in seen else f"key of {key}".encode()))
        seen.add(key)
    who, manager = Roster(0, 1, 0, least=0, registry=lambda: KEYS), SimpleClientManager()
    for arriving in data.draw(st.permutations(nodes)):
        manager.register(arriving)
        try:
            there = clients(who, manager)
        except RunError:  # too few to start with, each of which is named
            there = {}
        assert all(KEYS.get(manager.clients[cid].key) == client for client, cid in there.items())
        right = {n.cid for n in manager.clients.values() if KEYS.get(n.key) == n.answer["client"]}
        assert right == set(there.values())
        assert len(who.remarks) == len(manager.clients) - len(right)


def test_a_node_that_leaves_while_keys_are_looked_up_is_not_called_a_stranger(monkeypatch):
    manager = managed(node(1, "north"), node(2, "south"))
    who = Roster(0, 2, 0, least=0.5, registry=lambda: KEYS)
    clients(who, manager)
    grid = manager.clients["1"].grid
    online = [info for info in grid.get_nodes() if info.node_id != 2]
    monkeypatch.setattr(grid, "get_nodes", lambda: online)
    assert clients(who, manager) == {"north": "1"}
    assert who.remarks == []


def test_a_registry_with_faults_ends_a_run_at_its_start_and_later_leaves_the_one_before_in_force(caplog):
    faulty = False

    def registry():
        if faulty:
            raise ConfigError("line 2: no key")
        return KEYS

    manager, who = managed(node(1, "north")), Roster(0, 1, 0, registry=registry)
    clients(who, manager)
    faulty = True
    assert clients(who, manager) == {"north": "1"}
    assert "remains in use: line 2: no key" in caplog.text
    with pytest.raises(ConfigError, match="line 2"):
        Roster(0, 1, 0, registry=registry).everyone(manager)


@pytest.mark.case(32)
def test_without_a_registry_a_name_is_of_the_node_that_said_it_first_as_long_as_it_is_there():
    first, second = node(1, "north"), node(7, "north")
    manager = managed(first, node(2, "south"))
    who = Roster(0, 2, 0)
    clients(who, manager)
    manager.register(second)
    for _ in range(2):
        assert clients(who, manager) == {"north": "1", "south": "2"}
        (remark,) = who.remarks
        assert str(remark) == "node 7 claims to be north, as node 1 does: its claim is ignored"
        assert who.name(second) == "7"
    manager.unregister(first)
    assert clients(who, manager) == {"north": "7", "south": "2"}
    assert who.remarks == []
    manager.register(first)
    assert clients(who, manager) == {"north": "1", "south": "2"}


def test_without_a_registry_none_of_two_that_say_a_name_at_the_same_time_is_the_client():
    manager = managed(node(1, "north"), node(2, "south"))
    who = Roster(0, 2, 0)
    clients(who, manager)
    for cid in (8, 9):
        manager.register(node(cid, "west"))
    assert clients(who, manager) == {"north": "1", "south": "2"}
    assert [str(remark)[:24] for remark in who.remarks] == [f"node {n} claims to be west" for n in "89"]


@pytest.mark.parametrize("name", ["../x", "", "a" * 65, "a\x1b[2J", "a\n"])
def test_a_name_that_is_no_client_id_is_none(name):
    manager = managed(node(1, "north"), Named("2", {"client": name}))
    who = Roster(0, 2, 0, least=0.5)
    assert clients(who, manager) == {"north": "1"}
    assert "node 2 reports an unusable client id" in str(who.remarks[0])
    assert str(who.remarks[0]).isprintable()


@pytest.mark.case(34)
def test_a_node_that_answers_nothing_costs_a_run_one_wait_and_is_named_in_every_phase(clock):
    silent = Named("3", SILENT, b"key of west")
    manager = managed(node(1, "north"), node(2, "south"), silent)
    who = Roster(0, 3, 300, least=0.5, registry=lambda: KEYS)
    begin = clock.now
    assert clients(who, manager) == {"north": "1", "south": "2"}
    assert 300 <= clock.now - begin < 301
    began = clock.now
    for _ in range(9):
        assert [str(remark) for remark in who.remarks] == [
            "client west: node 3 has not reported its client id: it does not answer"
        ]
        assert clients(who, manager) == {"north": "1", "south": "2"}
    assert clock.now == began, "no phase waited for it"
    assert silent.asked == 1
    silent.answer = {"client": "west"}
    assert clients(who, manager) == {"north": "1", "south": "2", "west": "3"}


@pytest.mark.case(34)
def test_a_node_that_answers_nothing_is_not_waited_for_where_all_clients_are_there(clock):
    manager = managed(node(1, "north"), Named("3", SILENT), node(2, "south"))
    who, began = Roster(0, 2, 300), clock.now
    assert clients(who, manager) == {"north": "1", "south": "2"}
    assert clock.now == began
    assert who.remarks == [], "it was asked a moment ago"
    clock.sleep(300)
    clients(who, manager)
    assert [str(remark) for remark in who.remarks] == [
        "node 3 has not reported its client id: it does not answer"
    ]


@pytest.mark.case(34)
def test_silent_nodes_that_come_one_after_the_other_cost_a_run_that_has_its_clients_nothing(clock):
    manager = managed(node(1, "north"), node(2, "south"))
    who, began = Roster(0, 2, 300), clock.now
    for cid in range(3, 40):
        assert len(clients(who, manager)) == 2
        manager.register(Named(str(cid), SILENT))
    assert clock.now == began


@pytest.mark.case(34)
def test_where_the_silent_are_too_many_the_run_ends_with_their_nodes(clock):
    manager = managed(node(1, "north"), Named("2", SILENT), Named("3", SILENT))
    with pytest.raises(
        RunError, match=r"(?s)1 of 3 clients reported their client id, 2 nodes did not\nnode 2 has not"
    ):
        Roster(0, 3, 300, least=0.5).everyone(manager)


@pytest.mark.case(34)
def test_the_row_of_a_round_names_who_was_refused_and_who_was_silent_and_the_round_counts(clock):
    server = Server()
    server.manager.register(Named("77", SILENT))
    server.play(1, {str(i): update for i, update in enumerate(some_updates())})
    clock.sleep(900)
    server.manager.register(Named("78", {"client": "0"}))
    server.play(2, {str(i): update for i, update in enumerate(some_updates())})
    first, second = server.notes.rounds
    assert remarks(first) == []
    assert [(remark.client, remark.kind, remark.reason[:9]) for remark in remarks(second)] == [
        (None, "lost", "node 77 h"), (None, "rejected", "node 78 c"),
    ]  # fmt: skip
    assert (second["fit_clients"], second["skipped"]) == (3, False)


def test_a_node_whose_answer_was_an_error_is_asked_once_a_phase(clock):
    failing = Named("2", RAISED)
    who, manager = Roster(0, 2, 300, least=0.5), managed(node(1, "north"), failing)
    for phase in range(1, 4):
        clients(who, manager)
        assert failing.asked == phase
        assert "node 2 failed before it reported its client id: ConfigError" in str(who.remarks[0])


class Starting(SimpleClientManager):
    """A simulation whose nodes are there after a while."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.begins = clock, clock.now + seconds

    def all(self):
        if self.clock.now >= self.begins and not self.clients:
            self.register(node(1, "0"))
            self.register(node(2, "1"))
        return super().all()


def test_simulated_clients_are_waited_for_however_long_it_takes_and_the_log_says_for_what(clock, caplog):
    who = Roster(0, 2, None)
    assert clients(who, Starting(clock, 3000)) == {"0": "1", "1": "2"}
    assert "still starting Ray: 0 of 2 clients after 60 s" in caplog.text
    assert "2 of 2 clients are there after 30" in caplog.text
    assert len(caplog.records) == pytest.approx(50, abs=2)


def test_simulated_clients_whose_answer_takes_long_are_waited_for(clock, monkeypatch):
    slow = Named("1", SILENT)
    begin, sleep = clock.now, clock.sleep

    def sleeps(seconds):
        sleep(seconds)
        if clock.now > begin + 5000:
            slow.answer = {"client": "0"}

    monkeypatch.setattr(clock, "sleep", sleeps)
    assert clients(Roster(0, 1, None), managed(slow)) == {"0": "1"}
    assert slow.asked == 1


def test_a_simulation_that_ended_is_not_waited_for(clock, monkeypatch):
    monkeypatch.setattr(threading.main_thread(), "is_alive", lambda: False)
    with pytest.raises(RunError, match="0 of 2 clients are simulated"):
        Roster(0, 2, None).everyone(managed())


@pytest.mark.parametrize(("nodes", "per_node", "wanted"), [(2, 1, 10), (9, 1, 10), (12, 1, 10), (4, 2, 5)])
def test_a_simulation_with_another_number_of_clients_ends_at_once_with_the_number_to_set(
    clock, nodes, per_node, wanted
):
    begin = clock.now
    manager = managed(*(node(cid, str(cid)) for cid in range(nodes)))
    with pytest.raises(RunError) as caught:
        Roster(0, 10, None, least=0.1, per_node=per_node).everyone(manager)
    for told in (f"{nodes} of 10 clients are", f"num-supernodes={wanted} ", f"federation.clients={nodes} "):
        assert told in str(caught.value)
    assert clock.now == begin


def test_a_simulation_may_begin_without_a_client_whose_node_fails(clock):
    manager = managed(node(1, "0"), node(2, "1"), Named("3", RAISED))
    assert len(Roster(0, 3, None, least=0.5).everyone(manager)) == 2
