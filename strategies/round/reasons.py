"""Reads why a client failed out of what Flower and Ray wrap it in, and counts the clients with one cause."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

NAMED = 5  # clients that a line names; of more it gives the number
KILLED = (
    "its process was killed, perhaps out of memory: run fewer clients at a time "
    "(machine.cpus_per_client=2), or with a smaller train.batch_size"
)
_FLOWERS = re.compile(r"<class '(?:[\w.]+\.)?(?P<kind>\w+)(?:\(\w+\))?'>:<'(?P<text>.*)'>", re.DOTALL)
_ASKED = re.compile(r"Message contains an Error \(reason: (?P<reason>.*)\)\. It originated .*", re.DOTALL)
_RAISED = re.compile(r"(?:\w+\.)*(?P<kind>[A-Z]\w*): (?P<text>.*)")
_DEATHS = (
    "ActorDiedError",
    "ActorUnavailableError",
    "RayActorError",
    "WorkerCrashedError",
    "OutOfMemoryError",
)
_WRAPPERS = ("ClientAppException", "LoadClientAppError", "RayTaskError")
_NUMBER = re.compile(r"\d[\d.e+-]*")


class Cause(Protocol):
    """A fault of the answer of a client."""

    @property
    def client(self) -> str | None: ...

    @property
    def reason(self) -> str: ...


def plain_reason(reason: str) -> str:
    """The exception of a client's app, ``Kind: text``, without the classes, addresses and tracebacks that
    Flower and Ray put around it; a reason that is not wrapped as it is."""
    if asked := _ASKED.fullmatch(reason):
        reason = asked["reason"]
    wrapped = _FLOWERS.fullmatch(reason.strip())
    if wrapped is None:
        return reason
    kind, text = wrapped["kind"], wrapped["text"]
    if kind.startswith(_DEATHS):
        return KILLED
    raised = [found for line in text.splitlines() if (found := _RAISED.fullmatch(line.strip()))]
    own = [found for found in raised if found["kind"] not in _WRAPPERS]
    if kind.startswith(_WRAPPERS) and own:
        return f"{own[-1]['kind']}: {own[-1]['text']}"
    return f"{kind}: {' '.join(text.split())}"


def causes(failures: Iterable[Cause]) -> list[str]:
    """A line for each cause: the first client that it befell, the reason, and who else failed likewise,
    numbers apart."""
    alike: dict[str, list[Cause]] = {}
    for failure in failures:
        alike.setdefault(_NUMBER.sub("0", failure.reason), []).append(failure)
    return [f"{first}{_and_more(more)}" for first, *more in alike.values()]


def _and_more(more: list[Cause]) -> str:
    if not more:
        return ""
    names = [failure.client for failure in more if failure.client is not None]
    named = f": {', '.join(names)}" if len(names) == len(more) <= NAMED else ""
    return f" (and {len(more)} more{named})"
