"""Packed rows against padded batches: ``OMP_NUM_THREADS=1 python benchmarks/packing.py``.

A training step (forward and backward, LoRA as in experiment=lm/shakespeare) on the speeches of three
speakers, in batches of similar lengths as the trainer makes them, and in batches of whatever lengths come.
Padded and packed steps take turns in one process; medians of CPU time over the batches of an epoch, as ratios
to the padded step of the same batch. ``padding`` is the share of a padded batch that is no token.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.config.compose import load
from fedsa_lora.learning.adapters import AdapterModel, attach
from fedsa_lora.learning.training import epoch_batches
from fedsa_lora.seeds import generator
from fedsa_lora.tasks.causal_lm import CausalLMTask
from fedsa_lora.tasks.task import Batch, Examples

CLIENTS = ("0", "3", "7")
SIZE = 8
MOST = 20  # batches


def main() -> None:
    print("| attention | batches | padding | packed / padded, median (range) |\n|---|---|---|---|")
    for attention in ("sdpa", "eager"):
        words = ["experiment=lm/shakespeare", f"+model.config.attn_implementation={attention}"]
        padded, packed = (load([*words, f"task.packed={flag}"]) for flag in ("false", "true"))
        assert isinstance(padded.task, CausalLMTask)
        assert isinstance(packed.task, CausalLMTask)
        assert packed.lora is not None
        model = AdapterModel(attach(packed.task.build_model(seed=0), packed.lora))
        model.set_trainable(frozenset(model.layout.names))
        examples = Examples.joined([padded.task.load_client(client).train for client in CLIENTS])
        for name, batches in _orders(examples).items():
            ratios, padding = [], []
            for indices in batches[:MOST]:
                batch = padded.task.collate(examples, indices)
                base = _seconds(padded.task, model, batch)
                ratios.append(_seconds(packed.task, model, batch) / base)
                padding.append(1 - batch["attention_mask"].float().mean().item())
            middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
            share = statistics.mean(padding)
            print(
                f"| {attention} | {name} | {share:.0%} | {middle:.2f} ({low:.2f} to {high:.2f}) |", flush=True
            )


def _orders(examples: Examples) -> dict[str, list[NDArray[np.int64]]]:
    """The batches of an epoch, by the trainer and at random."""
    order = generator(0, "packing").permutation(len(examples))
    return {
        "of similar lengths": epoch_batches(examples.lengths, SIZE, generator(0, "packing")),
        "of any lengths": [order[at : at + SIZE] for at in range(0, len(order), SIZE)],
    }


def _seconds(task: CausalLMTask, model: AdapterModel, batch: Batch) -> float:
    """CPU seconds of a step, the faster of two."""
    found = []
    for _ in range(2):
        begun = time.process_time()
        task.loss(model.module, batch).backward()
        found.append(time.process_time() - begun)
    return min(found)


if __name__ == "__main__":
    main()
