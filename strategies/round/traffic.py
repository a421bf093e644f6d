"""Counts the bytes of a message once Flower has serialised it: arrays, header and framing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, RecordDict, Scalar
from flwr.common.serde import recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat

KEPT = 4096  # sizes
_sizes: OrderedDict[Hashable, int] = OrderedDict()  # of answers, by the lengths of what is in them


def message_bytes(message: FitIns | FitRes | EvaluateIns | EvaluateRes) -> int:
    """Size in bytes of the serialised Flower record that carries the message.

    That of an answer depends on the lengths of its parts alone, so one of the same lengths is not serialised
    again.
    """
    if isinstance(message, FitIns | EvaluateIns):
        return _serialised(message)
    lengths = _lengths(message)
    if lengths not in _sizes:
        _sizes[lengths] = _serialised(message)
        if len(_sizes) > KEPT:
            _sizes.popitem(last=False)
    return _sizes[lengths]


def _serialised(message: FitIns | FitRes | EvaluateIns | EvaluateRes) -> int:
    return int(recorddict_to_proto(_record(message)).ByteSize())


def _record(message: FitIns | FitRes | EvaluateIns | EvaluateRes) -> RecordDict:
    if isinstance(message, FitIns):
        return compat.fitins_to_recorddict(message, keep_input=True)
    if isinstance(message, FitRes):
        return compat.fitres_to_recorddict(message, keep_input=True)
    if isinstance(message, EvaluateIns):
        return compat.evaluateins_to_recorddict(message, keep_input=True)
    return compat.evaluateres_to_recorddict(message)


def _lengths(message: FitRes | EvaluateRes) -> Hashable:
    sent = message.parameters if isinstance(message, FitRes) else None
    return (
        type(message),
        None if sent is None else (sent.tensor_type, *map(len, sent.tensors)),
        *map(_length, (message.num_examples, message.status.code.value, message.status.message)),
        *((name, _length(value)) for name, value in message.metrics.items()),
    )


def _length(value: Scalar | list[Any]) -> Hashable:
    """What the length of a serialised value depends on: a whole number takes more bytes the larger it is, a
    float always eight."""
    if isinstance(value, list):
        return tuple(map(_length, value))
    if isinstance(value, str | bytes):
        return type(value), len(value.encode() if isinstance(value, str) else value)
    if isinstance(value, int) and value >= 0:
        return type(value), value.bit_length()
    return type(value), None if isinstance(value, float) else value
