"""What aggregating sparse updates costs on the server: `python benchmarks/topk_aggregation.py`.

The mean of 100 clients' updates of 4 million values as ``TopKFedSA`` takes it, against making each
update dense and giving them to Flower's ``aggregate``, one after the other in one run. Updates are drawn for
each ratio: values at random positions, as top-k leaves them. Prints a Markdown table: the ratio of times
(median of the repeats, lowest, highest), the largest difference in a value of the mean, and how much
memory each way allocates at its peak, as a multiple of one dense vector, beside the updates themselves.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from flwr.server.strategy.aggregate import aggregate
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import Layout, TensorSpec, Vector
from strategies.rules.updates import Update, mean_update

TENSORS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--size", type=int, default=4_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    rows = given.size // TENSORS
    layout = Layout(tuple(TensorSpec(f"{i}.lora_A.weight", (rows,), "A", str(i)) for i in range(TENSORS)))
    print(f"{given.clients} clients, {layout.size:,} values each, {given.repeats} repeats\n")
    print("| values sent | sparse mean / `aggregate`, time | peak memory, sparse | dense | differ by |")
    print("|---|---|---|---|---|")
    for ratio in (1.0, 0.1, 0.01):
        updates = drawn(layout, given.clients, ratio)
        ways = {
            "sparse": lambda u=updates: mean_update(layout, u),
            "dense": lambda u=updates: flowers(layout, u),
        }
        times = [(timed(ways["sparse"]), timed(ways["dense"])) for _ in range(given.repeats)]
        ratios = [one / two for one, two in times]
        apart = np.abs(ways["sparse"]() - ways["dense"]()).max()
        sparse, dense = (peak(way) / (4 * layout.size) for way in ways.values())
        time_ = f"{statistics.median(ratios):.4f} ({min(ratios):.4f}, {max(ratios):.4f})"
        print(f"| {ratio:.0%} | {time_} | {sparse:.1f} | {dense:.1f} | {apart:.0e} |")


def drawn(layout: Layout, clients: int, ratio: float) -> list[Update]:
    """Updates of clients that share everything; with a ratio of 1 they have no positions."""
    rng, names, updates = np.random.default_rng(0), frozenset(layout.names), []
    for client in range(clients):
        positions: NDArray[np.int64] | None = None
        if ratio < 1:
            positions = np.flatnonzero(rng.random(layout.size, np.float32) < ratio)
        count = layout.size if positions is None else positions.size
        values = rng.standard_normal(count, np.float32)
        updates.append(Update(str(client), 50 + client, names, positions, values))
    return updates


def flowers(layout: Layout, updates: list[Update]) -> Vector:
    """The mean as Flower's FedAvg takes it, from dense vectors."""
    (mean,) = aggregate([([update.dense(layout.size)], update.examples) for update in updates])
    return mean


def timed(way: Callable[[], Vector]) -> float:
    """CPU seconds: a machine under load blurs them less."""
    before = time.process_time()
    way()
    return time.process_time() - before


def peak(way: Callable[[], Vector]) -> int:
    """Bytes that are allocated at most at one time."""
    tracemalloc.start()
    way()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


if __name__ == "__main__":
    main()
