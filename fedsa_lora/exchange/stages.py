"""Stages of an upload: applied in this order on the client, undone in reverse on the server.

First comes what changes values (what earlier rounds owe, a bound on the norm; noise belongs here), then the
codec, then what hides its payload (masks and encryption belong here): positions and scales that are chosen
from values without noise would reveal them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import Vector
from fedsa_lora.exchange.codec import Codec, Sparse


class Stage(ABC):
    """One step of an upload on its way from a difference to what travels."""

    @abstractmethod
    def apply(
        self, update: NDArray[Any], residual: Vector | None, rng: np.random.Generator
    ) -> tuple[NDArray[Any], Vector | None]:
        """Turn an update (n,), or the payload made of it, into what the next stage takes. Returns with it
        what is left for the next round (n,), None for nothing. Neither of what is given is changed."""

    def undo(self, sent: Any, size: int) -> Any:
        """Take back on the server what ``apply`` did on the way of a vector (size,); a change of values was
        meant and stays. Raises WireError for what ``apply`` cannot have made."""
        return sent


@dataclass(frozen=True)
class Owed(Stage):
    """Adds what was not sent in the rounds before, see ``Coded``."""

    @np.errstate(over="ignore", invalid="ignore")  # the codec refuses what is not finite, with a message
    def apply(
        self, update: NDArray[Any], residual: Vector | None, rng: np.random.Generator
    ) -> tuple[NDArray[Any], Vector | None]:
        return update if residual is None else update + residual, None


@dataclass(frozen=True)
class Clipped(Stage):
    """Scales down to an L2 norm of at most ``norm``: v min(1, norm / |v|). What is clipped away is gone, and
    no part of what is left for the next round."""

    norm: float

    @np.errstate(over="ignore", invalid="ignore")  # the codec refuses what is not finite, with a message
    def apply(
        self, update: NDArray[Any], residual: Vector | None, rng: np.random.Generator
    ) -> tuple[NDArray[Any], Vector | None]:
        length = float(np.linalg.norm(update.astype(np.float64)))
        if length > self.norm:
            update = update * np.float32(self.norm / length)
        return update, residual


@dataclass(frozen=True)
class Coded(Stage):
    """Makes a vector the payload of a codec, and on the server a ``Sparse`` of the payload.

    With error feedback what was not sent is left for the next round: e <- u + e - C(u + e), so nothing is
    lost but by rounding (Seide et al. 2014; arXiv:1901.09847).
    """

    codec: Codec

    def apply(
        self, update: NDArray[Any], residual: Vector | None, rng: np.random.Generator
    ) -> tuple[NDArray[Any], Vector | None]:
        payload = self.codec.encode(update, rng)
        if not self.codec.leaves:
            return payload, None
        sent = self.codec.decode(payload, update.size)
        left = update.copy()
        left[slice(None) if sent.positions is None else sent.positions] -= sent.values
        return payload, left

    def undo(self, sent: Any, size: int) -> Sparse:
        return self.codec.decode(sent, size)


@dataclass(frozen=True)
class Stages:
    """Stages in the order of the client, with a ``Coded`` among them."""

    stages: tuple[Stage, ...]

    def apply(
        self, update: Vector, residual: Vector | None, rng: np.random.Generator
    ) -> tuple[NDArray[Any], Vector | None]:
        """Make the payload of an update (n,) and of the ``residual`` (n,) that earlier rounds left. Returns
        it with the residual that is left now."""
        payload: NDArray[Any] = update
        for stage in self.stages:
            payload, residual = stage.apply(payload, residual, rng)
        return payload, residual

    def undo(self, payload: NDArray[Any], size: int) -> Sparse:
        """Decode what was sent of a vector (size,). Raises WireError for a payload that ``apply`` cannot
        have made."""
        sent: Any = payload
        for stage in reversed(self.stages):
            sent = stage.undo(sent, size)
        found: Sparse = sent
        return found


def upload(codec: Codec, max_norm: float | None = None) -> Stages:
    """The stages of an upload; a server needs no ``max_norm`` to undo them."""
    stages: list[Stage] = [Owed()]
    if max_norm is not None:
        stages.append(Clipped(max_norm))
    return Stages((*stages, Coded(codec)))
