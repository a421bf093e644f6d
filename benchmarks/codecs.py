"""What each codec costs, in bytes and in time: `OMP_NUM_THREADS=1 python benchmarks/codecs.py [SIZE ...]`.

Prints a Markdown table for each size (200,000 and 4,000,000 values by default) and support: normal
values, and clustered ones, of which nine tenths are a hundred times smaller than the rest, in stretches
of 2,000. `of bound` is the payload against its value bytes plus the entropy of k positions of n that are
scattered at random, n H(k / n) / 8. Times are the best of seven, as multiples of one `np.copy` of the same
vector in the same run, taken in turns. The error is ||x - C(x)|| / ||x|| of one round; error feedback sends
it later.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fedsa_lora.exchange.codec import Codec, Dense
from fedsa_lora.exchange.numbers import FORMATS, numbers
from fedsa_lora.exchange.selection import RandomK, Threshold, TopK

SIZES = (200_000, 4_000_000)
STRETCH = 2_000
REPEATS = 7
CODECS: list[Codec] = [
    *(Dense(name) for name in FORMATS),
    *(TopK(0.1, name) for name in FORMATS),
    TopK(0.01),
    TopK(0.01, "int8"),
    RandomK(0.1),
    RandomK(0.1, "int8"),
    Threshold(1.6449),  # a tenth of normal values
    Threshold(1.6449, "int8"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES, metavar="SIZE")
    for size in parser.parse_args().sizes:
        table(f"{size:,} normal values", normal(size))
        table(f"{size:,} clustered values", clustered(size))


def normal(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def clustered(size: int) -> np.ndarray:
    stretches = np.random.default_rng(1).random(-(-size // STRETCH)) < 0.1
    scale = np.where(stretches, 1.0, 0.01).astype(np.float32)
    return normal(size) * np.repeat(scale, STRETCH)[:size]


def table(title: str, vector: np.ndarray) -> None:
    print(f"\n**{title}**\n")
    print("| codec | bytes a value | of bound | encode / copy | decode / copy | error |")
    print("|---|---|---|---|---|---|")
    for codec in CODECS:
        print(row(codec, vector), flush=True)


def row(codec: Codec, vector: np.ndarray) -> str:
    payload = codec.encode(vector, np.random.default_rng(2))
    decoded = codec.decode(payload, vector.size)
    copy, encode, decode = best_times(
        lambda: np.copy(vector),
        lambda: codec.encode(vector, np.random.default_rng(2)),
        lambda: codec.decode(payload, vector.size),
    )
    error = np.linalg.norm(vector - decoded.dense()) / np.linalg.norm(vector)
    cells = [
        codec.name,
        f"{payload.nbytes / vector.size:.4f}",
        f"{payload.nbytes / bound(codec, decoded.values.size, vector.size):.3f}",
        f"{encode / copy:.1f}",
        f"{decode / copy:.1f}",
        f"{error:.2g}",
    ]
    return f"| {' | '.join(cells)} |"


def bound(codec: Codec, count: int, size: int) -> float:
    """Bytes of ``count`` values and of the entropy of their positions; random positions cost none."""
    values = numbers(codec.values, codec.block).bytes_of(count)
    ratio = count / size
    if isinstance(codec, RandomK) or ratio in (0, 1):
        return values
    return values - size * (ratio * np.log2(ratio) + (1 - ratio) * np.log2(1 - ratio)) / 8


def best_times(*calls: Callable[[], Any]) -> list[float]:
    """The best seconds of each call, all taken in turns so that they meet the same machine."""
    best = [float("inf")] * len(calls)
    for _ in range(REPEATS):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
