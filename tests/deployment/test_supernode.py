"""The pauses of a node's SuperNode, and when it reports that a message is there."""

import importlib.util
import os
import time
from types import SimpleNamespace

import pytest
from faulty_grid import Clock

from fedsa_lora.deployment.node import Arrivals
from fedsa_lora.deployment.supernode import LOOP, SHARE, SHORTEST, Pauses, shorten

FLOWERS = 3.0  # seconds that Flower pauses where there is no message


class Node:
    """The loop of a SuperNode on a clock that only waiting moves: its pauses between questions."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.pauses = Pauses(self.clock)
        self.asked: list[float] = []

    def wait(self, seconds: float) -> float:
        """Wait for a message that comes after so many seconds; returns how late it is taken."""
        self.asked, comes = [], self.clock.now + seconds
        while self.clock.now < comes:
            began = self.clock.now
            self.pauses.sleep(FLOWERS)
            self.asked.append(self.clock.now - began)
        return self.clock.now - comes

    def answer(self, seconds: float) -> float:
        """Answer a message in so many seconds; returns how late the answer is taken."""
        ready = self.clock.now + seconds
        with self.pauses.answering():
            while self.clock.now < ready:
                self.pauses.sleep(0.5)
        return self.clock.now - ready


def test_a_node_whose_messages_are_far_apart_asks_as_seldom_as_flower_s_own():
    node = Node()
    for _ in range(5):
        node.wait(60)
        assert node.asked == pytest.approx([FLOWERS] * 20)
        assert node.answer(30) <= 0.5


@pytest.mark.parametrize("gap", [0.02, 0.3, 2.0])
def test_one_whose_messages_come_at_once_is_soon_there_for_the_next(gap):
    node = Node()
    node.wait(60)
    for number in range(20):
        assert node.answer(gap) <= SHARE * gap + SHORTEST
        late = node.wait(gap)
        if number > 6:  # a quarter of the wait before each time, from three seconds on
            assert late <= SHARE * (1 + SHARE) * gap + SHORTEST
            assert len(node.asked) <= 1 + 1 / SHARE


def test_an_idle_hour_after_it_costs_few_more_questions():
    node = Node()
    for _ in range(20):
        node.wait(0.02)
        node.answer(0.02)
    node.wait(3600)
    assert len(node.asked) <= 3600 / FLOWERS + 40
    assert max(node.asked) <= FLOWERS + 1e-6


def flower_loop():
    """A copy of the module that pauses, of the Flower that is installed."""
    spec = importlib.util.find_spec(LOOP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Ended(Exception):
    """Ends a loop without an end."""


def test_flower_s_loop_is_given_the_pauses_and_reports_each_message_when_all_of_it_is_there():
    loop, clock, told = flower_loop(), Clock(), []
    assert shorten(loop, Pauses(clock), lambda: told.append(clock.now))
    began = clock.now

    def answers(is_reply):
        assert told, "reported before its answer is looked for"
        if clock.now - began > 0.1:
            raise Ended
        return []

    with pytest.raises(Ended):
        loop._push_messages(SimpleNamespace(get_messages_legacy=answers), None, None, None)
    assert told == [began]
    assert clock.now - began < 0.2, "Flower's own pause is half a second"
    assert loop.pull_objects.keywords["initial_backoff"] < 0.1
    assert loop.time.monotonic() <= time.monotonic(), "the rest of the module is as it was"


@pytest.mark.parametrize("gone", ["time", "_push_messages", "pull_objects"])
def test_a_loop_of_another_flower_is_left_as_it_is(gone):
    loop = SimpleNamespace(time=time, _push_messages=print, pull_objects=lambda ids, initial_backoff: None)
    setattr(loop, gone, None)
    before = vars(loop).copy()
    assert not shorten(loop, Pauses(), print)
    assert vars(loop) == before


def test_tasks_are_looked_for_on_a_report_and_at_any_time_where_nothing_reports():
    reads, writes = os.pipe()
    arrivals = Arrivals(reads)
    assert not arrivals.within(0)
    os.write(writes, b"\n\n")
    assert arrivals.within(60)
    assert not arrivals.within(0), "reports that came together are one"
    os.close(writes)
    assert arrivals.within(60)
    assert arrivals.within(0)
    arrivals.close()
