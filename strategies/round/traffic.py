"""Counts the bytes of a message once Flower has serialised it: arrays, header and framing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat

from fedsa_lora.exchange.wire import KEY

KEPT = 4096  # sizes
_sizes: OrderedDict[Hashable, int] = OrderedDict()  # of answers, by the lengths of what is in them


def message_bytes(message: FitIns | FitRes | EvaluateIns | EvaluateRes) -> int:
    """Size in bytes of the serialised Flower record that carries the message.

    That of an answer depends on the lengths and types of its parts alone, so one of the same lengths is not
    serialised again. Only the lengths of answers such as our clients give are kept.
    """
    lengths = None if isinstance(message, FitIns | EvaluateIns) else _lengths(message)
    if lengths is None:
        return _serialised(message)
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


def _lengths(message: FitRes | EvaluateRes) -> Hashable | None:
    """Lengths that determine the size of an answer; None for one that has not the parts of our clients'."""
    tensors = message.parameters.tensors if isinstance(message, FitRes) else [b""]
    header, examples = message.metrics.get(KEY), message.num_examples
    if not isinstance(header, bytes) or len(message.metrics) > 1 or len(tensors) != 1:
        return None
    # nobody has checked yet what a client sends
    if type(examples) is not int or examples < 0 or type(getattr(message, "loss", 0.0)) is not float:
        return None
    kind = len(message.parameters.tensor_type) if isinstance(message, FitRes) else -1
    status = message.status
    said = status.code.value, len(status.message.encode())
    # a whole number takes more bytes the larger it is, a float always eight
    return kind, len(tensors[0]), len(header), examples.bit_length(), said
