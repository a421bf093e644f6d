"""Counts the bytes of a message once Flower has serialised it: arrays, header and framing."""

from __future__ import annotations

from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat


def message_bytes(message: FitIns | FitRes | EvaluateIns | EvaluateRes) -> int:
    """Size in bytes of the serialised Flower record that carries the message."""
    return int(recorddict_to_proto(_record(message)).ByteSize())


def _record(message: FitIns | FitRes | EvaluateIns | EvaluateRes) -> RecordDict:
    if isinstance(message, FitIns):
        return compat.fitins_to_recorddict(message, keep_input=True)
    if isinstance(message, FitRes):
        return compat.fitres_to_recorddict(message, keep_input=True)
    if isinstance(message, EvaluateIns):
        return compat.evaluateins_to_recorddict(message, keep_input=True)
    return compat.evaluateres_to_recorddict(message)
