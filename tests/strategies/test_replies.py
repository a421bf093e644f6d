"""A reply that cannot be read, or is never whole, costs its own node the round and nobody else."""

import threading
import time

import httpx
import pytest
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import HttpGrid, http_grid

from strategies.round.replies import Replies, UnreadableReply


class Hostile(HttpGrid):
    """Replies by message id: what is read of it, an exception, or an event until it is whole."""

    def __init__(self, replies) -> None:
        self.replies, self.asked = replies, []

    def pull_messages(self, message_ids):
        (key,) = message_ids
        self.asked.append(key)
        found = self.replies[key]
        if isinstance(found, Exception):
            raise found
        if isinstance(found, threading.Event):
            found.wait()
            return ["late"]
        return found


@pytest.mark.case(34)
def test_a_reply_that_is_never_whole_is_waited_for_once_and_holds_up_no_other():
    whole = threading.Event()
    grid, replies = Hostile({"a": whole, "b": ["good"], "c": []}), Replies(patience=0.2)
    began = time.monotonic()
    assert replies.take(grid, "a") == []
    assert time.monotonic() - began >= 0.2
    assert replies.take(grid, "b") == ["good"]
    assert replies.take(grid, "c") == []
    for _ in range(50):
        assert replies.take(grid, "a") == []
    assert grid.asked == ["a", "b", "c"], "it was asked for again while it is pulled"
    whole.set()
    deadline = time.monotonic() + 900
    while not (found := replies.take(grid, "a")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert found == ["late"]


def test_a_reply_that_flower_cannot_read_is_named_and_what_is_not_of_one_reply_ends_the_wait():
    stopped = httpx.ConnectError("refused")
    grid, replies = Hostile({"a": KeyError("Array"), "b": ["good"], "c": stopped}), Replies()
    with pytest.raises(UnreadableReply, match="KeyError: 'Array'"):
        replies.take(grid, "a")
    assert replies.take(grid, "b") == ["good"]
    with pytest.raises(httpx.ConnectError):
        replies.take(grid, "c")


def test_where_clients_are_called_they_are_in_the_thread_that_asks():
    class Here:
        def pull_messages(self, message_ids):
            return [threading.current_thread()]

    assert Replies(patience=0).take(Here(), "a") == [threading.current_thread()]


def test_nobody_waits_for_a_reply_that_is_never_whole_when_the_process_ends():
    grid = Hostile({"a": threading.Event()})
    Replies(patience=0).take(grid, "a")
    (pull,) = [thread for thread in threading.enumerate() if thread.name == "reply to a"]
    assert pull.daemon
    grid.replies["a"].set()


def test_parts_that_are_on_their_way_are_asked_for_again_soon(monkeypatch):
    monkeypatch.setattr(http_grid, "pull_objects", pull_objects)
    for _ in range(2):
        assert Replies().take(Hostile({"b": ["good"]}), "b") == ["good"]
    hurried = http_grid.pull_objects
    assert hurried.func is pull_objects, "once, however many replies are taken"
    assert hurried.keywords["initial_backoff"] < pull_objects.__kwdefaults__["initial_backoff"] / 10


def test_a_grid_of_another_flower_is_left_as_it_is(monkeypatch):
    def pull(ids):
        return {}

    monkeypatch.setattr(http_grid, "pull_objects", pull)
    assert Replies().take(Hostile({"b": ["good"]}), "b") == ["good"]
    assert http_grid.pull_objects is pull
