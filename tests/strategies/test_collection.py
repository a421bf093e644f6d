"""Whom a phase waits for, until when, and whom it asks again; on a clock that only waiting moves."""

import numpy as np
import pytest
from faulty_grid import Clock
from flwr.app import Error, Message, RecordDict
from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.constant import ErrorCode
from flwr.compat.common import recorddict_compat as compat
from flwr.server.compat.grid_client_proxy import GridClientProxy

from strategies.round import collection
from strategies.round.collection import FIT, PASSING, Collection, Unanswered

LOST = Error(ErrorCode.NODE_UNAVAILABLE, "gone")
CODES = [v for k, v in vars(ErrorCode).items() if not k.startswith("_")]


class Nodes:
    """A grid whose nodes answer by a script: what each does every time that it is asked, (seconds, what)."""

    def __init__(self, clock: Clock, script) -> None:
        self.clock, self.script = clock, {node: list(turns) for node, turns in script.items()}
        self.sent: list[Message] = []
        self.kinds: dict[str, str] = {}  # by client, of what is wrong with its answer
        self._arriving: list[tuple[float, Message]] = []

    def push_messages(self, messages):
        (message,) = messages
        self.sent.append(message)
        seconds, what = self.script[message.metadata.dst_node_id].pop(0)
        if what is None:
            return []
        message.metadata.__dict__["_message_id"] = f"message {len(self.sent)}"
        for answer in what if isinstance(what, list) else [what]:
            content = RecordDict() if isinstance(answer, str) else answer
            self._arriving.append((self.clock.now + seconds, Message(content, reply_to=message)))
        return [message.metadata.message_id]

    def pull_messages(self, ids):
        there = [
            m for at, m in self._arriving if at <= self.clock.now and m.metadata.reply_to_message_id in ids
        ]
        self._arriving = [(at, m) for at, m in self._arriving if m not in there]
        return there


def answer(value: float, code: Code = Code.OK) -> RecordDict:
    parameters = ndarrays_to_parameters([np.full(3, value, np.float32)])
    return compat.fitres_to_recorddict(FitRes(Status(code, "not today"), parameters, 1, {}), keep_input=True)


@pytest.fixture
def asks(monkeypatch):
    """Play a script: who answered what, why the others did not, how long it took, and the grid."""

    def play(script, **options):
        clock = Clock()
        monkeypatch.setattr(collection, "time", clock)
        nodes, begin = Nodes(clock, script), clock.now
        ins = FitIns(ndarrays_to_parameters([np.arange(3, dtype=np.float32)]), {"for": "all"})
        asked = [(GridClientProxy(node, nodes, 1), ins) for node in script]
        phase = Collection(FIT, 7, lambda proxy: f"c{proxy.cid}", **options)
        results, failures = phase.collect(asked)
        assert all(isinstance(failure, Unanswered) for failure in failures)
        values = [(p.node_id, parameters_to_ndarrays(r.parameters)[0][0]) for p, r in results]
        assert len(values) == len(dict(values))
        nodes.kinds = {failure.remark.client: failure.remark.kind for failure in failures}
        told = sorted(str(failure.remark) for failure in failures)
        return dict(values), told, clock.now - begin, nodes

    return play


@pytest.mark.case(4)
@pytest.mark.parametrize("stragglers", [1, 40])
def test_who_is_later_than_the_deadline_is_ignored_and_named_and_the_phase_ends_with_it(asks, stragglers):
    """Forty are more than Flower has threads: each batch of them would have a deadline of its own."""
    late = {node: [(10_000, answer(node))] for node in range(10, 10 + stragglers)}
    values, told, seconds, _ = asks({1: [(2, answer(1))], **late, 2: [(29, answer(2))]}, seconds=30)
    assert values == {1: 1, 2: 2}
    assert told == [f"client c{node}: late: no answer within 30 s" for node in late]
    assert 30 <= seconds <= 33


def test_a_phase_ends_when_all_have_answered_and_without_a_deadline_it_waits(asks):
    assert asks({1: [(1, answer(1))]}, seconds=30)[2] < 2
    values, told, seconds, _ = asks({1: [(1, answer(1))], 2: [(9_000, answer(2))]})
    assert (values, told) == ({1: 1, 2: 2}, [])
    assert seconds >= 9_000


@pytest.mark.parametrize("code", CODES)
def test_who_failed_for_a_passing_reason_is_asked_the_same_once_more(asks, code):
    script = {1: [(1, Error(code, "down")), (1, answer(5))], 2: [(1, answer(2))]}
    values, told, _, nodes = asks(script, retries=1)
    if code not in PASSING:
        assert (values, told, nodes.kinds) == ({2: 2}, ["client c1: down"], {"c1": "error"})
        return
    assert (values, told) == ({1: 5, 2: 2}, [])
    first, _, again = (compat.recorddict_to_fitins(m.content, keep_input=True) for m in nodes.sent)
    assert first == again


def test_it_is_asked_so_often_and_no_more_and_never_past_the_deadline(asks):
    for retries in (0, 1, 3):
        _, told, _, nodes = asks({1: [(1, LOST)] * 9}, retries=retries)
        assert (told, nodes.kinds) == (["client c1: gone"], {"c1": "lost"})
        assert len(nodes.sent) == 1 + retries
    _, told, seconds, _ = asks({1: [(4, LOST)] * 9}, retries=9, seconds=20)
    assert told == ["client c1: late: no answer within 20 s"]
    assert seconds <= 22


def test_a_node_that_is_not_known_any_more_is_lost_and_may_come_back(asks):
    script = {1: [(0, None)] * 2, 2: [(0, None), (1, answer(2))]}
    values, told, _, _ = asks(script, retries=1)
    assert (values, told) == ({2: 2}, ["client c1: its node cannot be reached"])


@pytest.mark.case(6)
def test_a_second_reply_to_a_message_is_none(asks):
    values, told, _, _ = asks({1: [(1, [answer(1), answer(9)])], 2: [(3, answer(2))]})
    assert (values, told) == ({1: 1, 2: 2}, [])


def test_an_answer_that_cannot_be_read_or_says_that_it_is_none_is_named(asks):
    script = {1: [(1, "nonsense")], 2: [(1, answer(2, Code.FIT_NOT_IMPLEMENTED))], 3: [(1, answer(3))]}
    values, told, _, nodes = asks(script, retries=1)
    assert values == {3: 3}
    assert nodes.kinds == {"c1": "rejected", "c2": "error"}
    assert told[0].startswith("client c1: its answer cannot be read: ")
    assert told[1] == "client c2: not today"


def test_one_at_a_time_they_are_asked_in_their_order_each_after_the_answer_before(asks):
    script = {node: [(seconds, answer(node))] for node, seconds in ((3, 9), (1, 1), (2, 5))}
    values, _, seconds, nodes = asks(script, at_once=1)
    assert [m.metadata.dst_node_id for m in nodes.sent] == [3, 1, 2]
    assert values == {1: 1, 2: 2, 3: 3}
    assert 15 <= seconds < 17


@pytest.mark.case(14)
def test_a_reply_that_flower_raises_for_is_its_own_client_s_and_those_of_the_others_are_taken(
    asks, monkeypatch
):
    pull = Nodes.pull_messages

    def raises(self, ids):
        there = pull(self, ids)
        if any(message.metadata.src_node_id == 2 for message in there):
            raise ValueError("object head")
        return there

    monkeypatch.setattr(Nodes, "pull_messages", raises)
    values, told, _, nodes = asks({node: [(1, answer(node))] for node in (1, 2, 3)}, retries=1)
    assert values == {1: 1, 3: 3}
    assert told == ["client c2: its answer cannot be read: ValueError: object head"]
    assert nodes.kinds == {"c2": "rejected"}
