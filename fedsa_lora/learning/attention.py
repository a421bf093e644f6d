"""The implementation of attention: transformers has several, and which is fast depends on precision, lengths
and processor."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from transformers import PreTrainedModel

from fedsa_lora.errors import ModelError
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import Objective
from fedsa_lora.tasks.heads import unwrapped
from fedsa_lora.tasks.task import Examples, Task

FIRST = "sdpa"  # what transformers takes by itself
OTHER = "eager"
ATTENTIONS = (FIRST, OTHER)
CLEARLY = 0.95  # the share of the first's time below which the other is taken
SMALL = 2_000_000  # parameters up to which a measurement costs more than it gains
TRIES = 3
LONG = 1.0  # seconds of a step after which one try is enough


def use_attention(model: AdapterModel, name: str) -> None:
    """Compute attention by this implementation of transformers from now on. Raises ModelError where it is not
    to be had."""
    backbone = unwrapped(model.module)
    if not isinstance(backbone, PreTrainedModel):
        return
    try:
        backbone.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise ModelError(
            f"model.attention={name} is not available here: {error}; set model.attention=sdpa",
            sent="the attention of the run is not available here",
            key="model.attention",
        ) from error


def worth_measuring(model: AdapterModel, settings: TrainSettings) -> bool:
    """True in half precision on a CPU, where the fused kernel may be the slower one, for a model of some size
    that computes by the first implementation. In float32 the two take about the same time, and the first
    keeps the bits that runs always had."""
    backbone = unwrapped(model.module)
    chosen = isinstance(backbone, PreTrainedModel) and backbone.config._attn_implementation == FIRST
    large = sum(parameter.numel() for parameter in model.module.parameters()) > SMALL
    return chosen and large and settings.precision != "fp32" and model.device.type == "cpu"


def measured_attention(model: AdapterModel, task: Task, examples: Examples, settings: TrainSettings) -> str:
    """The faster implementation in the precision of the run, on a batch of its size and of the middle
    lengths: forward and backward, in turns, by CPU time. Leaves the first in use."""
    order = np.argsort(examples.lengths, kind="stable")
    start = max(0, (len(order) - settings.at_once) // 2)
    indices = order[start : start + settings.at_once]
    objective = Objective(model, task, examples, settings)
    model.set_trainable(frozenset(model.layout.names))
    model.set_mode(training=False)  # dropout is drawn apart from it

    def step() -> None:
        objective.loss(indices).backward()  # type: ignore[no-untyped-call]

    found = dict.fromkeys(ATTENTIONS, float("inf"))
    for attempt in range(TRIES):
        for name in found:
            use_attention(model, name)
            if attempt == 0:
                step()  # the first of all builds the kernels
            found[name] = min(found[name], _seconds(step))
        if max(found.values()) > LONG:
            break
    use_attention(model, FIRST)
    model.set_trainable(frozenset())
    return OTHER if found[OTHER] < CLEARLY * found[FIRST] else FIRST


def _seconds(step: Callable[[], None]) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began
