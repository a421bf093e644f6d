"""Flower's SuperNode with shorter pauses: a script that ``fedsa-lora node`` starts in place of the command.

Flower 1.41 pauses for three seconds where the SuperLink had no message, and for half a second where a message
has no answer yet, and has no option for either. In split learning a step is a message or more. The module that
pauses is given another ``time``; one of another version of Flower that does not pause so is left as it is.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import entry_points
from typing import Any

COMMAND, LOOP = "flower-supernode", "flwr.supernode.start_client_internal"
BETWEEN_QUESTIONS = 1.0  # seconds from which on a pause of Flower's is one between questions to the SuperLink
SHORTEST = 0.005
SHARE = 0.25  # of a wait, that a pause in it lasts
log = logging.getLogger("flwr")


class Pauses:
    """Stands in for the module ``time``: its ``sleep`` is never longer than Flower asks for.

    A pause is a share of how long the wait has lasted. In the wait for a message it is no less than that share
    of the wait for the message before: a node whose messages come minutes apart asks as seldom as Flower's
    own, and one whose messages come at once is there for the next. ``arrived`` is called when a message has.
    """

    def __init__(self, arrived: Callable[[], None], clock: Any = time) -> None:
        self._arrived, self._clock = arrived, clock
        self._asks = True  # for a message; else for the answer to the one that came
        self._began = self._woke = clock.monotonic()
        self._usual = math.inf  # seconds that the message before took to come

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Pause for at most so many seconds."""
        asks = seconds >= BETWEEN_QUESTIONS
        now = self._clock.monotonic()
        if asks != self._asks:
            self._turn(now)
        waited = now - self._began
        if asks:
            waited = max(waited, self._usual)
        self._clock.sleep(min(max(SHARE * waited, SHORTEST), seconds))
        self._woke = self._clock.monotonic()

    def _turn(self, now: float) -> None:
        """Begin the other wait."""
        if self._asks:
            self._usual = self._woke - self._began
            self._arrived()
        self._asks, self._began = not self._asks, now


def shorten(pauses: Pauses) -> bool:
    """Give the loop of Flower's SuperNode these pauses; False where it does not pause as expected."""
    try:
        loop: Any = importlib.import_module(LOOP)
    except ImportError:
        loop = None
    if getattr(loop, "time", None) is not time:
        log.warning("this version of Flower pauses in another way: its SuperNode keeps its own pauses")
        return False
    loop.time = pauses
    return True


def main() -> None:
    """Run Flower's command with the arguments after the first, a file descriptor that is written to when a
    message has arrived."""
    descriptor = int(sys.argv[1])

    def arrived() -> None:
        with suppress(OSError):  # nobody hands out tasks any more
            os.write(descriptor, b"\n")

    sys.argv[:2] = [COMMAND]
    shorten(Pauses(arrived))
    command = next(iter(entry_points(group="console_scripts", name=COMMAND)))
    sys.exit(command.load()())


if __name__ == "__main__":
    main()
