"""How rare the witness's false alarms are, what it finds, and how long it takes.

    python benchmarks/witness.py --messages 200

B and messages are made in the same way, by the same rate and number of steps, the worst case for chance: a
message is the B of another client. ``chance`` is the sum of 2^b over all runs of 1 to 4 values, of b bits,
that stand in a message by chance, as a share of the places for them: at most 1 if b bounds the probability.
``pairs`` are neighbours of B that are neighbours in a message, on average; ``row`` is how many values in a
row are found in a message of 300,000, on average and for 99 of 100 places of B; none where there is too
little to search for. With ``--first-look`` it times the look that most messages end with instead: for three
generations of a client, with what is kept of each.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsa_lora.exchange.witness import FALSE_ALARM, SEED, Sketch, matches, may_hold, private_values

MODULES, WIDTH, RANK, BATCH = 49, 768, 8, 16
Values = NDArray[np.float32]
LOOKS = {  # private values of a generation, and bytes of a message
    "two layers of width 128": (5_128, 17_000),
    "MiniLM, training": (39_559, 148_000),
    "MiniLM, evaluation": (39_559, 400),
    "split learning, small": (18_000, 264_000),
    "split learning, GPT-2": (221_000, 3_100_000),
}
MADE: dict[str, dict[str, Any]] = {
    "SGD, 1 step": {"optimizer": torch.optim.SGD, "steps": 1, "lr": 1e-2},
    "SGD, 5 steps": {"optimizer": torch.optim.SGD, "steps": 5, "lr": 1e-2},
    "AdamW, 1 step": {"steps": 1},
    "AdamW, 1 step, lr 1e-5": {"steps": 1, "lr": 1e-5},
    "AdamW, 1 step, not clipped": {"steps": 1, "clip": False},
    "AdamW, 2 steps": {"steps": 2},
    "AdamW, 3 steps, lr 1e-5": {"steps": 3, "lr": 1e-5},
    "AdamW, 5 steps": {"steps": 5},
    "AdamW, 1 step, bf16": {"steps": 1, "bf16": True},
    "AdamW, 5 steps, bf16": {"steps": 5, "bf16": True},
}


def trained(
    seed: int,
    steps: int,
    lr: float = 1e-3,
    clip: bool = True,
    bf16: bool = False,
    optimizer: Any = torch.optim.AdamW,
) -> Values:
    """B of all modules from zero, (300,000,): gradients of low rank with rows of very different size."""
    draw = torch.Generator().manual_seed(seed)
    b = [torch.zeros(WIDTH, RANK, requires_grad=True) for _ in range(MODULES)]
    made = optimizer(b, lr=lr, weight_decay=0.0)
    channels = torch.exp(torch.randn(WIDTH, generator=draw))
    for _ in range(steps):
        for value in b:
            rows = torch.randn(2, WIDTH, generator=draw) * channels
            columns = torch.randn(2, RANK, generator=draw)
            value.grad = rows.T @ columns / WIDTH + 1e-3 * value.detach()
        if clip:
            torch.nn.utils.clip_grad_norm_(b, 1.0)
        made.step()
    values = torch.cat([value.detach().flatten() for value in b])
    return (values.bfloat16().float() if bf16 else values).numpy()


def chance(b: Values, message: Values, information: NDArray[np.float64], length: int) -> tuple[float, int]:
    """The sum of 2^bits over the runs of this length that the message has as well, by the places; how many
    there are."""
    # one number for each run, the same for bit-identical runs
    factors = np.random.default_rng(length).integers(1, 2**63, size=length, dtype=np.uint64) | np.uint64(1)
    known, sent = (
        sum(v.view(np.uint32)[i : v.size - length + 1 + i] * factor for i, factor in enumerate(factors))
        for v in (b, message)
    )
    sent = np.sort(sent)
    count = np.searchsorted(sent, known, "right") - np.searchsorted(sent, known, "left")
    bits = information[length:] - information[:-length]
    return float((count * 2.0**bits).sum() / known.size / sent.size), int(count.sum())


def row(information: NDArray[np.float64], needed: float) -> NDArray[np.int64]:
    """How many values from each on are a run that is recognised."""
    ends = np.searchsorted(information, information[:-1] + needed)
    lengths = ends - np.arange(ends.size)
    return np.maximum(SEED, lengths[ends < information.size])


def first_look(repeats: int) -> None:
    """Print CPU time for each of ``LOOKS``."""
    draw = np.random.default_rng(0)
    print("| client | private values | bytes of a message | CPU ms |\n|---|---|---|---|")
    for name, (size, length) in LOOKS.items():
        generations = [{"b": draw.normal(size=size).astype(np.float32)} for _ in range(3)]
        sketches = [Sketch.of(state) for state in generations]
        message = draw.normal(size=length // 4).astype(np.float32).tobytes()
        spent = []
        for _ in range(repeats):
            started = time.process_time()
            may_hold(message, sketches)
            spent.append(time.process_time() - started)
        print(f"| {name} | 3 x {size:,} | {length:,} | {1e3 * np.median(spent):.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=20, help="for each way to make them")
    parser.add_argument("--first-look", action="store_true")
    options = parser.parse_args()
    if options.first_look:
        first_look(5 * options.messages)
        return
    print("| made by | bits of a value | row | pairs | chance | alarms in messages | ms |\n|" + "---|" * 7)
    for name, how in MADE.items():
        b = trained(0, **how)[: 100_000 // RANK * RANK]
        alarms, pairs, largest, seconds = 0, 0, 0.0, 0.0
        for seed in range(1, options.messages + 1):
            message = trained(seed, **how)
            content = b"?" + message.tobytes()
            started = time.perf_counter()
            private = private_values([{"b": b}])
            alarms += matches(content, private) > 0
            seconds += time.perf_counter() - started
            found = [chance(b, message, private.information, length) for length in (1, 2, 3, 4)]
            largest, pairs = max(largest, *(share for share, _ in found)), pairs + found[1][1]
        bits = float(np.median(np.diff(private.information)))
        lengths = row(private.information, float(np.log2(len(content) * b.size / FALSE_ALARM)))
        told = f"{lengths.mean():.1f}, {np.percentile(lengths, 99):.0f}" if private.size else "none"
        print(
            f"| {name} | {bits:.0f} | {told} | {pairs / options.messages:,.1f} | {largest:.2g} "
            f"| {alarms} in {options.messages} | {1e3 * seconds / options.messages:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
