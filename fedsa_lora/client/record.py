"""A client's own record of the messages that it answers: a log and metrics in its folder."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TypeVar

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedsa_lora.client.egress import discreet
from fedsa_lora.errors import WireError
from fedsa_lora.exchange.wire import BroadcastHeader, UploadHeader, read_header
from fedsa_lora.telemetry.exposition import METRICS, Labels, Metric, publish
from fedsa_lora.telemetry.journal import CLIENT_LOG, about, journal, record

PHASES = {"train": "fit"}  # by Flower's message type, where it has another name
Header = TypeVar("Header", BroadcastHeader, UploadHeader)


class ClientRecord:
    """The outermost mod of a client: what is logged while it answers goes to ``log.jsonl`` in its folder,
    how it went to ``metrics.prom``. Neither is read by what is sent, nor sent itself. ``asked`` is the header
    of the message, if it has one."""

    def __init__(self, folder: Path, asked: BroadcastHeader | None) -> None:
        self.folder, self.client = folder, folder.name
        self.round = None if asked is None else asked.round

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        phase = PHASES.get(message.metadata.message_type.split(".")[0], message.metadata.message_type)
        started = time.perf_counter()
        with journal(self.folder / CLIENT_LOG, "client", self.client), about(round=self.round, phase=phase):
            reply = discreet(message, context, call_next)
            if reply.has_error():
                return reply
            answer = header_of(reply, UploadHeader)
            self._tell(reply, answer, _since(started))
            if answer is not None:
                self._publish(answer, phase, _since(started))
        return reply

    def _tell(self, reply: Message, answer: UploadHeader | None, seconds: float) -> None:
        size = sum(part.count_bytes() for part in reply.content.values()) if reply.has_content() else 0
        if answer is not None and answer.error:
            record("refused", answer.error, logging.ERROR, seconds=seconds, bytes=size)
            return
        numbers: dict[str, float] = {}
        if answer is not None:
            numbers = {"examples": answer.examples, "measured on": answer.measured, **answer.report}
        said = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        record("answered", said, seconds=seconds, bytes=size)

    def _publish(self, answer: UploadHeader, phase: str, seconds: float) -> None:
        phases = {"phase": phase}
        examples = answer.measured if phase == "evaluate" else answer.examples
        metrics = [
            _gauge("round", "Last round that this client answered.", answer.round),
            _gauge("failed", "1 when its last answer was an error.", answer.error != ""),
            _gauge("examples", "Examples of its last answer, for training or evaluation.", examples, phases),
            _gauge("answer_seconds", "Duration of its last answer.", seconds, phases),
            _gauge("last_answer_timestamp_seconds", "Time of its last answer.", time.time()),
        ]
        publish(self.folder / METRICS, metrics, {"client": self.client})


def _gauge(name: str, meaning: str, value: float, labels: Labels | None = None) -> Metric:
    return Metric(f"client_{name}", "gauge", meaning, [(labels or {}, value)])


def header_of(message: Message, kind: type[Header]) -> Header | None:
    """Reads the header of a message; None where there is none that can be read."""
    for entries in message.content.values() if message.has_content() else ():
        if isinstance(entries, ConfigRecord):
            try:
                return read_header(entries, kind)
            except WireError:
                continue
    return None


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 4)
