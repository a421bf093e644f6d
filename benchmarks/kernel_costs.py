"""Costs of the kernels that the layout of a pass over several clients is chosen by: ``python
benchmarks/kernel_costs.py``, a minute on one thread.

Three tables of CPU time, medians: products with a frozen weight whose memory is contiguous (MKL in float32)
and in the layout of oneDNN; the same with a number of rows that was not there before, for which a kernel may
be compiled; and softmax and its gradient, by nanosecond per value, over rows of whole vector registers and
others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import nn

from fedsa_lora.learning.cohort import products
from fedsa_lora.learning.cohort.products import Product

KINDS = (torch.float32, torch.bfloat16)
WEIGHTS = ((128, 128), (128, 512), (384, 384), (384, 1536))  # d_in, d_out
ROWS, REPEATS = 512, 15


def seconds(of: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median of CPU seconds, after a first call."""
    of()
    spent = []
    for _ in range(repeats):
        started = time.process_time()
        of()
        spent.append(time.process_time() - started)
    return statistics.median(spent)


def layouts(weight: tuple[int, int], kind: torch.dtype) -> dict[str, Product]:
    """The product of a weight in both layouts."""
    module = nn.Linear(*weight)
    with patch.object(products, "_packs", lambda weight: False):
        contiguous = Product.of(module, kind)
    with patch.object(products, "_is_intel", lambda: False), patch.object(products, "SMALL", 0):
        return {"contiguous": contiguous, "oneDNN": Product.of(module, kind)}


def of_products() -> None:
    print(f"| weight | numbers | contiguous, us, {ROWS} rows | oneDNN, us | contiguous / oneDNN |")
    print("|---|---|---|---|---|")
    for weight in WEIGHTS:
        for kind in KINDS:
            x = torch.randn(ROWS, weight[0]).to(kind)
            spent = [
                seconds(lambda made=made, x=x: made.forward(x)) for made in layouts(weight, kind).values()
            ]
            first, second = (1e6 * each for each in spent)
            print(
                f"| {weight[0]} x {weight[1]} | {kind} | {first:.0f} | {second:.0f} | {first / second:.2f} |"
            )


def of_new_sizes() -> None:
    print("\n| weight | numbers | layout | first product of a number of rows, us | later ones, us |")
    print("|---|---|---|---|---|")
    weight = WEIGHTS[-1]
    for kind in KINDS:
        for name, made in layouts(weight, kind).items():
            first, later = [], []
            for rows in range(301, 301 + 2 * REPEATS, 2):
                x = torch.randn(rows, weight[0]).to(kind)
                started = time.process_time()
                made.forward(x)
                first.append(time.process_time() - started)
                later.append(seconds(lambda made=made, x=x: made.forward(x), 3))
            row = f"{1e6 * statistics.median(first):.0f} | {1e6 * statistics.median(later):.0f}"
            print(f"| {weight[0]} x {weight[1]} | {kind} | {name} | {row} |")


def of_softmax() -> None:
    print("\n| numbers | values in a row | softmax, ns for each value | its gradient |")
    print("|---|---|---|---|")
    for kind in KINDS:
        for columns in (14, 16, 24, 27, 32, 128):
            scores = torch.randn(1 << 19, dtype=torch.float32)[: (1 << 19) // columns * columns]
            scores = scores.view(-1, columns).to(kind)
            p = torch.softmax(scores, dim=-1)
            there = seconds(lambda scores=scores: torch.softmax(scores, dim=-1))
            back = seconds(
                lambda scores=scores, p=p, kind=kind: torch._softmax_backward_data(scores, p, -1, kind)
            )
            each = [1e9 * spent / scores.numel() for spent in (there, back)]
            print(f"| {kind} | {columns} | {each[0]:.2f} | {each[1]:.2f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        of_products()
        of_new_sizes()
        of_softmax()
