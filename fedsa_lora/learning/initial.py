"""The common start of server and clients: drawn from a seed, so that nobody has to send it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.learning.lora import VERA_D
from fedsa_lora.learning.names import DIFFERENCE
from fedsa_lora.seeds import generator


def initial_state(
    layout: Layout, seed: int, head_row_norm: float | None = None
) -> dict[str, NDArray[np.float32]]:
    """The common start of server and clients, drawn from the seed tensor by tensor.

    A: Kaiming uniform with a = sqrt(5) as in LoRA (arXiv:2106.09685), that is
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)); B and biases: zero; head weights: N(0, 0.02), or rows of
    norm ``head_row_norm`` in the last head layer; the weights of a norm in the head: one; VeRA's d: 0.1; the
    backbone and whatever else is exchanged as a difference: no difference.
    """
    drawn = [s for s in layout if s.role == "head" and not s.name.endswith(DIFFERENCE)]
    heads = [spec.name for spec in drawn if len(spec.shape) == 2]
    state: dict[str, NDArray[np.float32]] = {}
    for spec in layout:
        rng = generator(seed, "initial", spec.name)
        if spec.name.endswith(DIFFERENCE):
            value: NDArray[Any] = np.zeros(spec.shape)
        elif spec.name.endswith(".vera_lambda_d"):
            value = np.full(spec.shape, VERA_D)
        elif spec.role == "A":
            bound = 1.0 / np.sqrt(np.prod(spec.shape[1:]))
            value = rng.uniform(-bound, bound, spec.shape)
        elif spec.role == "head" and len(spec.shape) > 1:
            value = rng.normal(0.0, 0.02, spec.shape)
            if head_row_norm is not None and spec.name == heads[-1]:
                value *= head_row_norm / np.linalg.norm(value, axis=1, keepdims=True)
        elif spec.role == "head" and spec.name.endswith(".weight"):
            value = np.ones(spec.shape)
        else:
            value = np.zeros(spec.shape)
        state[spec.name] = value.astype(np.float32)
    return state
