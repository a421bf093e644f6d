"""Takes in replies one by one: what one node sends neither spoils nor holds up those of others."""

from __future__ import annotations

import sys
import threading
from functools import cached_property, partial
from inspect import signature
from typing import Any

import httpx
from flwr.app import Message
from flwr.serverapp.grid import Grid
from flwr.supercore.run import RunNotRunningException

PATIENCE_SECONDS = 2.0
FIRST_BACKOFF = 0.005  # seconds; Flower's is 1. The parts of a reply come right after it
# What is not of one reply: the SuperLink does not answer, or the run was stopped
OF_ALL = (httpx.HTTPError, RunNotRunningException)


class UnreadableReply(Exception):
    """A reply that Flower has, and cannot read."""


class Replies:
    """Asks for the reply to one message at a time.

    Flower forgets a reply when it is asked for, raises whatever its parts make it raise, and waits for parts
    that the node has not sent yet, for up to two hours. In one request for all messages a single reply would
    take those of all others along. Here each is asked for alone, and beyond ``patience`` seconds in the
    background.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self.patience = patience
        self._pulls: dict[str, _Pull] = {}  # by the id of the message, those that take longer

    def take(self, grid: Grid, message_id: str) -> list[Message]:
        """The reply to a message; none while there is none, or not all of it. Raises UnreadableReply, and
        httpx.HTTPError or RunNotRunningException where no reply can be had."""
        pull = self._pulls.pop(message_id, None)
        if pull is None:
            pull = _Pull(grid, message_id)
            if not _asks_a_superlink(grid):  # clients are called here, in the thread that they know
                pull.run()
                return pull.result()
            pull.thread.start()
            pull.thread.join(self.patience)
        if pull.thread.is_alive():
            self._pulls[message_id] = pull
            return []
        return pull.result()


def _asks_a_superlink(grid: Grid) -> bool:
    """True for an ``HttpGrid``. Its package loads a database and a web server: where nobody has imported it,
    no grid is one."""
    package = sys.modules.get("flwr.superlink.grid")
    if package is None or not isinstance(grid, package.HttpGrid):
        return False
    _ask_again_soon(sys.modules[package.HttpGrid.__module__])
    return True


def _ask_again_soon(module: Any) -> None:
    """Have Flower's grid ask again soon for a part of a reply that is still on its way; nothing changes where
    another version of Flower waits in another way."""
    pull = getattr(module, "pull_objects", None)
    if pull is None or isinstance(pull, partial) or "initial_backoff" not in signature(pull).parameters:
        return
    module.pull_objects = partial(pull, initial_backoff=FIRST_BACKOFF)


class _Pull:
    """One request for one reply; it may be left alone when nobody waits for it any more."""

    def __init__(self, grid: Grid, message_id: str) -> None:
        self.grid, self.message_id = grid, message_id
        self._replies: list[Message] = []
        self._error: Exception | None = None

    @cached_property
    def thread(self) -> threading.Thread:
        """Makes the request in the background, once it is started."""
        return threading.Thread(target=self.run, name=f"reply to {self.message_id}", daemon=True)

    def run(self) -> None:
        try:
            self._replies = list(self.grid.pull_messages([self.message_id]))
        except Exception as error:
            self._error = error

    def result(self) -> list[Message]:
        if self._error is None:
            return self._replies
        if isinstance(self._error, (*OF_ALL, UnreadableReply)):
            raise self._error
        raise UnreadableReply(f"{type(self._error).__name__}: {self._error}") from self._error
