"""Ask clients and collect their answers until a deadline, in place of the threads of Flower's loop.

There one thread waits for each client, as long as there are threads: with more clients than that, a
deadline begins anew for each batch, and a failure does not say whose it was.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common import Code, EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters, Scalar
from flwr.common.constant import ErrorCode
from flwr.compat.common import recorddict_compat as compat
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy

from fedsa_lora.errors import WireError
from strategies.round.admission import Failure, Kind, Remark, Res, Unanswered
from strategies.round.reasons import plain_reason
from strategies.round.replies import Replies, UnreadableReply

Ins = TypeVar("Ins", FitIns, EvaluateIns)
FIRST_PAUSE, POLL_SECONDS, LONGEST_PAUSE = 0.001, 0.1, 1.0  # twice as long each time that nothing came
BUSY = 4  # pauses last so many times as long as asking for all replies, so that many nodes cost little
RETRY_SECONDS = 2.0  # before a client is asked again: a node that restarts is not there at once
GRACE_SECONDS = 1.0  # a message outlives the deadline by this much, so that it is us who report the late
# A node was gone, its reply lost or its process killed. What a client says itself, or its app raises,
# would be the same again.
PASSING = frozenset(
    {
        ErrorCode.UNKNOWN,
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)
UNREACHABLE = Error(ErrorCode.NODE_UNAVAILABLE, "its node cannot be reached")
log = logging.getLogger("flwr")


def no_further(client: str, result: Any) -> None:
    """One answer of a client is all of it."""


@dataclass(frozen=True)
class Phase(Generic[Ins, Res]):
    """Writes a phase of a round as Flower's messages, and reads its answers."""

    kind: str
    write: Callable[[Ins], RecordDict]
    read: Callable[[RecordDict], Res]


FIT: Phase[FitIns, FitRes] = Phase(
    MessageType.TRAIN,
    partial(compat.fitins_to_recorddict, keep_input=True),
    partial(compat.recorddict_to_fitres, keep_input=False),
)
EVALUATE: Phase[EvaluateIns, EvaluateRes] = Phase(
    MessageType.EVALUATE,
    partial(compat.evaluateins_to_recorddict, keep_input=True),
    compat.recorddict_to_evaluateres,
)


@dataclass
class Question(Generic[Ins]):
    """The message to one client, how often it was sent, and from when on it may be."""

    proxy: GridClientProxy
    ins: Ins
    asked: int = 0
    due: float = 0.0


class Collection(Generic[Ins, Res]):
    """One phase of one round: everyone is asked at once (or ``at_once`` at a time), in the order given.

    After ``seconds`` (None: no deadline) who has not answered is late, and what it may still send is
    ignored. A client that failed for a passing reason is asked the same again, up to ``retries`` times
    while there is time. ``name_of`` returns the client of a node. ``further`` returns the config of a further
    message to a client after its answer, until one is its last; it raises WireError for an answer that is
    none.
    """

    def __init__(
        self,
        phase: Phase[Ins, Res],
        round_: int,
        name_of: Callable[[ClientProxy], str],
        *,
        seconds: float | None = None,
        retries: int = 0,
        at_once: int | None = None,
        further: Callable[[str, Any], dict[str, Scalar] | None] = no_further,
    ) -> None:
        self.phase: Phase[Ins, Res] = phase
        self.round, self.name_of = round_, name_of
        self.seconds, self.retries, self.at_once = seconds, retries, at_once
        self.further = further
        self._ends = math.inf if seconds is None else time.monotonic() + seconds
        self._waiting: list[Question[Ins]] = []
        self._open: dict[str, Question[Ins]] = {}  # by the id of the message that is not answered yet
        self._replies = Replies()
        self._results: list[tuple[ClientProxy, Res]] = []
        self._failures: list[Failure[Res]] = []

    def collect(
        self, asked: Iterable[tuple[ClientProxy, Ins]]
    ) -> tuple[list[tuple[ClientProxy, Res]], list[Failure[Res]]]:
        """The answers, and for each client without one an ``Unanswered``."""
        self._waiting = [Question(cast(GridClientProxy, proxy), ins) for proxy, ins in asked]
        shortest = FIRST_PAUSE
        while (self._waiting or self._open) and self._left() > 0:
            self._send()
            began = time.monotonic()
            if self._receive():
                shortest = FIRST_PAUSE
            else:
                pause = max(shortest, min(BUSY * (time.monotonic() - began), LONGEST_PAUSE))
                time.sleep(min(pause, max(self._left(), 0)))
                shortest = min(2 * shortest, POLL_SECONDS)
        self._waiting.extend(self._open.values())
        for question in self._waiting:
            self._fail(question, "lost", f"late: no answer within {self.seconds:g} s")
        return self._results, self._failures

    def _left(self) -> float:
        return self._ends - time.monotonic()

    def _send(self) -> None:
        now = time.monotonic()
        room = None if self.at_once is None else self.at_once - len(self._open)
        for question in [q for q in self._waiting if q.due <= now][:room]:
            self._waiting.remove(question)
            question.asked += 1
            message = Message(
                content=self.phase.write(question.ins),
                message_type=self.phase.kind,
                dst_node_id=question.proxy.node_id,
                group_id=str(self.round),
                ttl=None if self.seconds is None else self._left() + GRACE_SECONDS,
            )
            ids = list(question.proxy.grid.push_messages([message]))
            if ids and ids[0]:
                self._open[ids[0]] = question
            else:  # Flower's word for a node that it does not know any more
                self._miss(question, UNREACHABLE)

    def _receive(self) -> bool:
        """Take in what has arrived in time, if anything has. A second reply to a message is none."""
        arrived = False
        for message_id, question in list(self._open.items()):
            try:
                replies = self._replies.take(question.proxy.grid, message_id)
            except UnreadableReply as error:
                del self._open[message_id]
                self._fail(question, "rejected", f"its answer cannot be read: {error}")
                arrived = True
                continue
            if self._left() <= 0:  # where clients are called here, a pull lasts as long as a client
                return False
            if replies:
                del self._open[message_id]
                arrived = True
                self._take(question, replies[0])
                self._send()  # its next message: it works on while the replies of others are taken
        return arrived

    def _take(self, question: Question[Ins], reply: Message) -> None:
        if reply.has_error():
            self._miss(question, reply.error)
        else:
            self._read(question, reply.content)

    def _read(self, question: Question[Ins], content: RecordDict) -> None:
        try:
            result = self.phase.read(content)
        except Exception as error:  # what a foreign app may answer fails in many ways
            told = f"its answer cannot be read: {type(error).__name__}: {error}"
            return self._fail(question, "rejected", told)
        if result.status.code != Code.OK:
            return self._fail(question, "error", result.status.message)
        try:
            config = self.further(self.name_of(question.proxy), result)
        except WireError as error:
            return self._fail(question, "rejected", str(error))
        if config is None:
            return self._results.append((question.proxy, result))
        ins = replace(question.ins, parameters=Parameters([], ""), config=config)
        return self._waiting.append(Question(question.proxy, ins))

    def _miss(self, question: Question[Ins], error: Error) -> None:
        kind: Kind = "lost" if error.code in PASSING else "error"
        reason = plain_reason(error.reason or f"error {error.code}")
        if kind == "error" or question.asked > self.retries:
            return self._fail(question, kind, reason)
        told = Remark.of(self.name_of(question.proxy), kind, reason)
        log.info("client %s is asked once more: %s", told.client, told.reason, extra={"client": told.client})
        question.due = time.monotonic() + RETRY_SECONDS
        return self._waiting.append(question)

    def _fail(self, question: Question[Ins], kind: Kind, why: str) -> None:
        self._failures.append(Unanswered(Remark.of(self.name_of(question.proxy), kind, why)))
