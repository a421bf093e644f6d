"""Flower's SuperNode with shorter pauses: a script that ``fedsa-lora node`` starts in place of the command.

Flower 1.41 pauses for three seconds where the SuperLink had no message, for half a second where a message has
no answer yet, and for a second where a part of a message is still on its way, and has no option for any. In
split learning a step is a message or more. So the module that pauses is given other means to; one of another
version of Flower that does not look as expected is left as it is.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import entry_points
from inspect import signature
from typing import Any

COMMAND, LOOP = "flower-supernode", "flwr.supernode.start_client_internal"
SHORTEST = 0.005  # seconds
SHARE = 0.25  # of a wait, that a pause in it lasts
log = logging.getLogger("flwr")


class Pauses:
    """Stands in for the module ``time`` in the loop of a SuperNode: its ``sleep`` is never longer than Flower
    asks for.

    A pause is a share of how long the wait has lasted. In the wait for a message it is no less than that
    share of the wait for the message before: a node whose messages come minutes apart asks as seldom as
    Flower's own, and one whose messages come at once is there for the next.
    """

    def __init__(self, clock: Any = time) -> None:
        self._clock = clock
        self._began = self._woke = clock.monotonic()
        self._usual = math.inf  # seconds that the wait lasts at the least, as far as one can see

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Pause for at most so many seconds."""
        waited = max(self._clock.monotonic() - self._began, self._usual)
        self._clock.sleep(min(max(SHARE * waited, SHORTEST), seconds))
        self._woke = self._clock.monotonic()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A message has come, whose answer is waited for."""
        took = self._woke - self._began
        self._began, self._usual = self._clock.monotonic(), 0.0
        yield
        self._began, self._usual = self._clock.monotonic(), took


def shorten(loop: Any, pauses: Pauses, arrived: Callable[[], None]) -> bool:
    """Give the loop of Flower's SuperNode these pauses, and have ``arrived`` called when all of a message is
    there. False, and nothing is changed, where it does not look as expected."""
    push, pull = getattr(loop, "_push_messages", None), getattr(loop, "pull_objects", None)
    if getattr(loop, "time", None) is not time or push is None or pull is None:
        return False
    if "initial_backoff" not in signature(pull).parameters:
        return False

    def push_messages(*args: Any, **kwargs: Any) -> None:
        arrived()
        with pauses.answering():
            push(*args, **kwargs)

    loop.time, loop._push_messages = pauses, push_messages
    loop.pull_objects = partial(pull, initial_backoff=SHORTEST)
    return True


def main() -> None:
    """Run Flower's command with the arguments after the first, a file descriptor that is written to when a
    message has arrived, and closed where that is not known."""
    descriptor = int(sys.argv[1])

    def arrived() -> None:
        with suppress(OSError):  # nobody hands out tasks any more
            os.write(descriptor, b"\n")

    loop = None
    with suppress(ImportError):
        loop = importlib.import_module(LOOP)
    sys.argv[:2] = [COMMAND]
    if not shorten(loop, Pauses(), arrived):
        log.warning(
            "this version of Flower polls in another way: it takes seconds until a message is received"
        )
        os.close(descriptor)
    command = next(iter(entry_points(group="console_scripts", name=COMMAND)))
    sys.exit(command.load()())


if __name__ == "__main__":
    main()
