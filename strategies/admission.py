"""Which of the answers of a round are admitted, and who is rejected for what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flwr.common import EvaluateRes, FitRes
from flwr.server.client_proxy import ClientProxy

from fedsa_lora.errors import WireError
from fedsa_lora.exchange import wire
from strategies.traffic import message_bytes

Res = TypeVar("Res", FitRes, EvaluateRes)
Failure = tuple[ClientProxy, Res] | BaseException


@dataclass(frozen=True)
class Answer(Generic[Res]):
    """An admitted answer: who, from which node, how many bytes, and what was decoded of it."""

    header: wire.UploadHeader
    proxy: ClientProxy
    result: Res
    size: int
    value: Any


@dataclass(frozen=True)
class Admission(Generic[Res]):
    """``answers`` by client, a line that says who and why for each one ``rejected``, and the bytes of
    all that arrived, admitted or not."""

    answers: list[Answer[Res]]
    rejected: list[str]
    bytes_up: int


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
    rejected = [_reason(failure) for failure in failures]
    bytes_up = 0
    for proxy, result in results:
        bytes_up += (size := message_bytes(result))
        try:
            header = wire.read_header(result.metrics, wire.UploadHeader)
            if header.client != name_of(proxy) or header.client in admitted:
                raise WireError(f"answers as client {header.client!r}, or for the second time")
            wire.check_upload(header, round_, needed)
            admitted[header.client] = Answer(header, proxy, result, size, decode(header, result))
        except WireError as error:
            rejected.append(f"client {name_of(proxy)}: {error}")
    return Admission([admitted[client] for client in sorted(admitted)], sorted(rejected), bytes_up)


def _reason(failure: Failure[Any]) -> str:
    if isinstance(failure, BaseException):
        return f"a node failed: {failure}"
    proxy, result = failure
    return f"node {proxy.cid} failed: {result.status.message}"
