"""Messages of a step of split learning: states of a part of a model, and the gradients of these.

A message is entries of Flower's config or metrics dict: a JSON header under ``cut``, and under ``cut/NAME``
the bytes of each tensor. Down to a client go h2, behind the trunk, and g1, the gradient of h1; up go h1, with
the mask of its tokens, and g2. Nothing is allocated before its size is known to be the expected one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import WireError
from fedsa_lora.exchange.numbers import NumberFormat, numbers

KEY = "cut"
UP, DOWN = ("h1", "g2"), ("h2", "g1")
MASK, NORMS = "mask", "norms"
MAX_HEADER_BYTES = 1 << 20
MAX_MESSAGES = 10**9
MAX_NORMS = 1 << 20
States = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """A message of a step.

    ``number`` is that of the exchange in its round, from 0. ``tensors`` are states or gradients by name,
    (batch, tokens, d) each; ``mask`` (batch, tokens) is true of the tokens of h1 that are no padding.
    ``last``: with these gradients the step is whole. ``norms`` (n,) are those of the gradients of the
    sender's n trained tensors, sorted by name, by which the other side's are clipped too; ``stepped``: the
    client has taken its step.
    ``loss`` is the share of the step's loss that g2 is the gradient of.
    """

    number: int
    tensors: Mapping[str, States] = field(default_factory=dict)
    mask: NDArray[np.bool_] | None = None
    last: bool = False
    stepped: bool = False
    norms: States | None = None
    loss: float | None = None


@dataclass(frozen=True)
class StepFormat:
    """The format of the states of a run: ``width`` numbers for each token, in one of the number formats. A
    message has at most ``most`` tokens, padding included."""

    name: NumberFormat
    width: int
    most: int

    def write(self, step: Step, rng: np.random.Generator) -> dict[str, str | bytes]:
        """The entries of a message; ``rng`` rounds int8."""
        shapes = {name: list(tensor.shape[:2]) for name, tensor in sorted(step.tensors.items())}
        header: dict[str, Any] = {"number": step.number, "shapes": shapes, "last": step.last}
        header |= {"stepped": step.stepped, "loss": step.loss}
        entries: dict[str, str | bytes] = {KEY: json.dumps(header, separators=(",", ":"))}
        for name, tensor in sorted(step.tensors.items()):
            entries[f"{KEY}/{name}"] = self._numbers.encode(tensor.ravel(), rng).tobytes()
        if step.mask is not None:
            entries[f"{KEY}/{MASK}"] = np.packbits(step.mask).tobytes()
        if step.norms is not None:
            entries[f"{KEY}/{NORMS}"] = step.norms.astype("<f4").tobytes()
        return entries

    def read(self, entries: Mapping[str, Any], known: tuple[str, ...]) -> Step:
        """The message, with none but ``known`` tensors. Raises WireError for any other content."""
        header = _header(entries.get(KEY))
        shapes = header.pop("shapes")
        sizes = {name: self._shape(name, shape, known) for name, shape in shapes.items()}
        tensors = {name: self._tensor(entries, name, shape) for name, shape in sizes.items()}
        mask = None
        if "h1" in sizes:
            mask = _mask(entries.get(f"{KEY}/{MASK}"), sizes["h1"])
        return Step(tensors=tensors, mask=mask, norms=_norms(entries.get(f"{KEY}/{NORMS}")), **header)

    @property
    def _numbers(self) -> Any:
        return numbers(self.name, self.width)

    def _shape(self, name: str, shape: Any, known: tuple[str, ...]) -> tuple[int, int]:
        if name not in known:
            raise WireError(f"a step has {name[:20]!r}, expected some of {', '.join(known)}")
        if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
            raise WireError(f"{name} must have a shape of batch and tokens, got {str(shape)[:60]}")
        if shape[0] * shape[1] > self.most:
            raise WireError(f"{name} has {shape[0]} x {shape[1]} tokens, expected at most {self.most}")
        return shape[0], shape[1]

    def _tensor(self, entries: Mapping[str, Any], name: str, shape: tuple[int, int]) -> States:
        content = entries.get(f"{KEY}/{name}")
        count = shape[0] * shape[1] * self.width
        expected = self._numbers.bytes_of(count)
        if not isinstance(content, bytes) or len(content) != expected:
            found = len(content) if isinstance(content, bytes) else 0
            raise WireError(
                f"{name} has {found} bytes, expected {expected} of {shape[0]} x {shape[1]} x {self.width} "
                f"numbers in {self.name}"
            )
        values: States = self._numbers.decode(np.frombuffer(content, np.uint8), count)
        return values.reshape(*shape, self.width)


def is_step(entries: Mapping[str, Any]) -> bool:
    """True of entries that hold a message of a step."""
    return KEY in entries


def _header(text: Any) -> dict[str, Any]:
    """The checked header. Raises WireError."""
    if not isinstance(text, str) or len(text) > MAX_HEADER_BYTES:
        raise WireError(f"no usable header under {KEY!r}: not sent by this app, or modified in transit")
    try:
        found = json.loads(text)
        header = {key: found[key] for key in ("number", "shapes", "last", "stepped", "loss")}
        sound = (
            len(found) == len(header)
            and type(header["number"]) is int
            and 0 <= header["number"] <= MAX_MESSAGES
            and isinstance(header["shapes"], dict)
            and type(header["last"]) is type(header["stepped"]) is bool
            and (header["loss"] is None or _is_number(header["loss"]))
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WireError(f"unreadable header of a step: {type(error).__name__}") from None
    if not sound:
        raise WireError("the header of a step has fields of other types than expected")
    return header


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _mask(content: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    count = shape[0] * shape[1]
    if not isinstance(content, bytes) or len(content) != -(-count // 8):
        raise WireError(f"the mask of {shape[0]} x {shape[1]} tokens must be {-(-count // 8)} bytes")
    mask = np.unpackbits(np.frombuffer(content, np.uint8), count=count).astype(bool).reshape(shape)
    if not mask[:, 0].all():
        raise WireError("the mask has a row that begins with padding; expected padding on the right")
    return mask


def _norms(content: Any) -> States | None:
    if content is None:
        return None
    if not isinstance(content, bytes) or len(content) % 4 or len(content) > 4 * MAX_NORMS:
        raise WireError("the norms of gradients must be float32 numbers")
    norms = np.frombuffer(content, "<f4").astype(np.float32)
    if not (np.isfinite(norms).all() and (norms >= 0).all()):
        raise WireError("the norms of gradients must be finite and not negative")
    return norms
