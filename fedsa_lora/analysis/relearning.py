"""Relearning: a measure of the memory left in A, by what comes back when B alone is trained on a part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from fedsa_lora.analysis.forgotten import nll
from fedsa_lora.client.model import ClientModel
from fedsa_lora.exchange.arrays import NamedArrays, cut
from fedsa_lora.learning.forgetting import read_tokens
from fedsa_lora.tasks.task import Examples

STEPS = (5, 10, 20)  # of training B alone, after which it is asked what is known again


def relearned(
    served: ClientModel, facts: Examples, start: NamedArrays, merged: NamedArrays
) -> dict[str, dict[str, float]]:
    """By steps of training B alone on half of the facts, from a start: the loss by token of that half
    (``seen``) and of the other one (``unseen``), where each half is the trained one in turn. Without a start,
    from the initial one: what the facts cost to learn at all."""
    odd = np.arange(len(facts)) % 2 == 1
    halves = [facts.at(np.flatnonzero(odd == which)) for which in (False, True)]
    values = {**cut(served.bench.initial, served.layout), **start}
    found = {}
    for steps in STEPS:
        each = [_after(steps, served, pair, values, merged) for pair in (halves, halves[::-1])]
        known, new = zip(*each, strict=True)
        found[str(steps)] = {"seen": fmean(known), "unseen": fmean(new)}
    return found


def _after(
    steps: int, served: ClientModel, halves: Sequence[Examples], values: NamedArrays, merged: NamedArrays
) -> tuple[float, float]:
    """The loss of the first half, which B is trained on for some steps, and of the other one."""
    bench = served.bench
    settings = replace(
        bench.settings,
        accumulate=math.ceil(len(halves[0]) / bench.settings.at_once),
        schedule="constant",
        warmup=0.0,
    )
    trained = frozenset(spec.name for spec in served.layout if spec.role == "B")
    local = served.local(0, trained, values, examples=halves[0], settings=settings, merged=merged)
    job = local.job(steps=steps, part="relearn", asked=tuple(halves), read=read_tokens)
    known, new = (float(nll(answers.astype(np.float64)).mean()) for answers in bench.outcome(job).answers)
    return known, new
