"""Which of the answers of a round are admitted, and who is rejected for what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from flwr.common import EvaluateRes, FitRes
from flwr.server.client_proxy import ClientProxy

from fedsa_lora.errors import WireError
from fedsa_lora.exchange import wire
from strategies.traffic import message_bytes

Res = TypeVar("Res", FitRes, EvaluateRes)
Failure = tuple[ClientProxy, Res] | BaseException
MAX_REASON = 500  # characters of a text that a client may have written, in logs and rows


class Unanswered(Exception):
    """A line that says which client gave no usable answer, and why."""


@dataclass(frozen=True)
class Answer(Generic[Res]):
    """An admitted answer: who, from which node, how many bytes, and what was decoded of it."""

    header: wire.UploadHeader
    proxy: ClientProxy
    result: Res
    size: int
    value: Any


@dataclass(frozen=True)
class Remark:
    """What was found wrong with the answer of a client."""

    client: str
    reason: str

    def __str__(self) -> str:
        return f"client {self.client}: {self.reason}"


@dataclass(frozen=True)
class Admission(Generic[Res]):
    """``answers`` by client; those that were wrong, and so ``rejected`` or ``clipped``, by client; a line
    for each client that ``failed``: an error or no answer at all; and the bytes of all that arrived."""

    answers: list[Answer[Res]]
    rejected: list[Remark]
    failed: list[str]
    bytes_up: int
    clipped: list[Remark] = field(default_factory=list)

    @property
    def lost(self) -> list[str]:
        """A line that says who and why for each answer that is not there to go on with."""
        return sorted([*map(str, self.rejected), *self.failed])


def admit(
    round_: int,
    results: Iterable[tuple[ClientProxy, Res]],
    failures: Iterable[Failure[Res]],
    name_of: Callable[[ClientProxy], str],
    *,
    needed: tuple[str, ...],
    decode: Callable[[wire.UploadHeader, Res], Any] = lambda header, result: None,
) -> Admission[Res]:
    """Sort what arrived into what holds and what does not.

    ``needed`` are the numbers that a report must have. ``decode`` raises WireError for values that
    must not get in.
    """
    admitted: dict[str, Answer[Res]] = {}
    rejected: list[Remark] = []
    failed = [_reason(failure) for failure in failures]
    bytes_up = 0
    for proxy, result in results:
        bytes_up += (size := message_bytes(result))
        try:
            header = wire.read_header(result.metrics, wire.UploadHeader)
            if header.client != name_of(proxy) or header.client in admitted:
                raise WireError(f"answers as client {header.client!r}, or for the second time")
            if header.error:
                failed.append(f"client {header.client}: {_shown(header.error)}")
                continue
            wire.check_upload(header, round_, needed)
            admitted[header.client] = Answer(header, proxy, result, size, decode(header, result))
        except WireError as error:
            rejected.append(Remark(name_of(proxy), _shown(str(error))))
    answers = [admitted[client] for client in sorted(admitted)]
    return Admission(answers, sorted(rejected, key=str), sorted(failed), bytes_up)


def _shown(text: str) -> str:
    """A client's text as one line that cannot fill a disk or command a terminal."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_REASON])


def _reason(failure: Failure[Any]) -> str:
    if isinstance(failure, Unanswered):
        return _shown(str(failure))
    if isinstance(failure, BaseException):
        return f"a node failed: {failure}"
    proxy, result = failure
    return f"node {proxy.cid} failed: {result.status.message}"
