"""Admits the answers of a round, or rejects them with a reason."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from flwr.common import EvaluateRes, FitRes
from flwr.server.client_proxy import ClientProxy

from fedsa_lora.errors import ConfigError, RunError, WireError, printable
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.reported import Numbers
from fedsa_lora.store import client_fault
from strategies.round.reasons import causes, plain_reason
from strategies.round.traffic import message_bytes

Res = TypeVar("Res", FitRes, EvaluateRes)
Kind = Literal["error", "lost", "rejected", "clipped"]
Failure = tuple[ClientProxy, Res] | BaseException
MAX_REASON = 500  # characters of a text that a client may have written, in logs and rows
MAX_NAME = 64  # of the name of a client, or of the number of a node that has not reported one
log = logging.getLogger("flwr")


def one_line(text: str, most: int = MAX_REASON) -> str:
    """The text of a client or of its node on one line that cannot fill a disk, command a terminal or turn
    the direction of what is written; what is cut off of it is counted."""
    line = printable(text[:most])
    cut = len(text) - most
    return f"{line} ({cut:,} more characters)" if cut > 0 else line


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
    """A fault in the answer of a client, None where nobody knows whose. ``error``: it reported one
    instead; ``lost``: none came; ``rejected`` or ``clipped``: the server did that with it."""

    client: str | None
    kind: Kind
    reason: str

    @classmethod
    def of(cls, client: str | None, kind: Kind, reason: str) -> Remark:
        """With what a client or its node may have written as ``one_line``."""
        return cls(None if client is None else one_line(client, MAX_NAME), kind, one_line(reason))

    def __str__(self) -> str:
        return self.reason if self.client is None else f"client {self.client}: {self.reason}"


class Unanswered(Exception):
    """The client that gave no usable answer, and why."""

    def __init__(self, remark: Remark) -> None:
        super().__init__(remark)
        self.remark = remark


@dataclass(frozen=True)
class Admission(Generic[Res]):
    """``answers`` and what was wrong with any, each by client, and the bytes of all that arrived."""

    answers: list[Answer[Res]]
    remarks: list[Remark]
    bytes_up: int

    @property
    def failures(self) -> list[Remark]:
        """Remarks on answers that are not there to continue with."""
        return [remark for remark in self.remarks if remark.kind != "clipped"]

    @property
    def rejected(self) -> list[Remark]:
        return [remark for remark in self.remarks if remark.kind == "rejected"]

    def warn(self) -> None:
        """Log who did not answer, and whose answer was not taken as it was."""
        for remark in self.remarks:
            log.warning("%s", remark, extra={"client": remark.client})

    def with_remarks(self, answers: list[Answer[Res]], remarks: Iterable[Remark]) -> Admission[Res]:
        """The rest of it after a second look."""
        return replace(self, answers=answers, remarks=sorted([*self.remarks, *remarks], key=str))


def admit(
    round_: int,
    results: Iterable[tuple[ClientProxy, Res]],
    failures: Iterable[Failure[Res]],
    name_of: Callable[[ClientProxy], str],
    numbers: Numbers,
    *,
    decode: Callable[[wire.UploadHeader, Res], Any] = lambda header, result: None,
) -> Admission[Res]:
    """Sort what arrived into what holds and what does not.

    ``numbers`` are what a report may hold. ``decode`` raises WireError for values that must not get in.
    """
    admitted: dict[str, Answer[Res]] = {}
    remarks = [_lost(failure, name_of) for failure in failures]
    bytes_up = 0
    for proxy, result in results:
        bytes_up += (size := message_bytes(result))
        try:
            header = wire.read_header(result.metrics, wire.UploadHeader)
            if header.client != name_of(proxy) or header.client in admitted:
                raise WireError(f"answers as client {header.client!r}, or for the second time")
            if fault := client_fault(header.client):
                raise WireError(fault)
            if header.error:
                remarks.append(Remark.of(header.client, "error", header.error))
                continue
            wire.check_upload(header, round_, numbers)
            admitted[header.client] = Answer(header, proxy, result, size, decode(header, result))
        except WireError as error:
            remarks.append(Remark.of(name_of(proxy), "rejected", str(error)))
    answers = [admitted[client] for client in sorted(admitted)]
    return Admission(answers, sorted(remarks, key=str), bytes_up)


def check_measurable(round_: int, last: int, failures: list[Remark]) -> None:
    """Raise RunError for an evaluation that no client answered: after the last round, as the run has no
    result; before, where all reported faults of the configuration, which further rounds would not mend."""
    of_config = [
        one.kind == "error" and one.reason.startswith(f"{ConfigError.__name__}:") for one in failures
    ]
    if round_ == last or (failures and all(of_config)):
        which = "the last evaluation" if round_ == last else f"the evaluation of round {round_}"
        raise RunError("\n".join([f"no client answered {which}", *causes(failures)]))


def _lost(failure: Failure[Any], name_of: Callable[[ClientProxy], str]) -> Remark:
    if isinstance(failure, Unanswered):
        return failure.remark
    if isinstance(failure, BaseException):
        return Remark.of(None, "lost", f"a node failed: {plain_reason(str(failure))}")
    proxy, result = failure
    return Remark.of(name_of(proxy), "error", result.status.message)
