"""Signals that stop what is under way in order: they raise, so that everything that was started is ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fedsa_lora.errors import StoppedError

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit codes, as a shell has them


def by_signal(error: BaseException) -> bool:
    """True for an exception that a signal raises: Flower's apps exit with 0, ours with 128 + its number."""
    if isinstance(error, SystemExit):
        return error.code in (None, 0) or (isinstance(error.code, int) and error.code > 128)
    return isinstance(error, KeyboardInterrupt)


def exit_on_signal(number: int, frame: FrameType | None) -> None:
    """Raises SystemExit(128 + number); the same signal again does nothing: cleaning is not cut off."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


@contextmanager
def stoppable(told: Callable[[], str]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end what is inside with a StoppedError, whose message ``told`` gives once
    everything inside has been ended. Outside of the main thread, SIGINT alone."""
    handlers = _caught()
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        for number in handlers:  # another one must not cut off what ``told`` writes
            signal.signal(number, signal.SIG_IGN)
        code = stop.code if isinstance(stop, SystemExit) else INTERRUPTED
        raise StoppedError(told(), code if isinstance(code, int) else INTERRUPTED) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _caught() -> dict[signal.Signals, Any]:
    """Handle the signals, unless they are ignored (nohup) or not Python's to give back. Returns the handlers
    before."""
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        return handlers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        handler = signal.getsignal(number)
        if handler not in (signal.SIG_IGN, None):
            handlers[number] = handler
            if number != signal.SIGINT:  # which raises KeyboardInterrupt already
                signal.signal(number, exit_on_signal)
    return handlers


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that would stop what is under way do nothing inside: cleaning is not cut off."""
    handlers = _caught()
    for number in handlers:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_with_parent(first: Callable[[], None] = lambda: None) -> None:
    """Make this process of ``multiprocessing`` leave a Ctrl-C to its parent, and end when that vanishes
    without a word (SIGKILL, out of memory), once ``first`` was done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        first()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
