"""Share of a device's peak that local training reaches, without Ray: ``make bench-gpu``.

Clients are trained in one pass by the product's own trainer, on the model and data of ``--words``, with the
products of all clients at once and client by client. The peak is that of a large matrix product in the type
of training, measured on the same device. Operations for each real token are counted by torch (products and
attention, forward and backward) in the training of one client after the other; padding counts as nothing. It
runs on a CPU as well (``--device cpu``).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from unittest.mock import patch

import torch
from bench import jobs_of
from torch.utils.flop_counter import FlopCounterMode

from fedsa_lora.client import build
from fedsa_lora.client.workbench import Workbench
from fedsa_lora.config.compose import load
from fedsa_lora.errors import TrainingError
from fedsa_lora.learning.cohort import Cohort, slots
from fedsa_lora.learning.job import OneByOne, Outcome, settled

SIDE = {"cuda": 8192, "cpu": 2048}  # of the matrices of the peak


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of wall time, after one call that does not count."""
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return median(found[1:])


def peak(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Operations a second of a large matrix product."""
    side = SIDE[device.type]
    one, two = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: one @ two, device, repeats)


def operations(bench: Workbench) -> float:
    """Products' operations for each token that is trained on."""
    with FlopCounterMode(display=False) as counted:
        outcome = settled(*OneByOne(bench.model, bench.task)(jobs_of(bench, 1, 1)))
    return counted.get_total_flops() / outcome.report.padded_tokens


def tokens(outcomes: Sequence[Outcome | TrainingError]) -> int:
    return sum(settled(found).report.tokens for found in outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--clients", nargs="*", type=int, default=[1, 4, 16])
    parser.add_argument("--batches", nargs="*", type=int, default=[8, 16, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--words", nargs="*", default=["experiment=quickstart", "train.precision=bf16"])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    wanted = [*given.words, f"machine.device={given.device}", f"federation.clients={max(given.clients)}"]
    wanted.append(f"machine.cohort={max(given.clients)}")
    print("| batch | clients in one pass | products | tokens a second | of the peak |\n|---|---|---|---|---|")
    for batch in given.batches:
        bench = build.workbench(load([*wanted, f"train.batch_size={batch}"]))
        device, settings = bench.model.device, bench.settings
        kind = torch.float32 if settings.precision == "fp32" else settings.dtype
        most, each = peak(device, kind, given.repeats), operations(bench)
        for clients in given.clients:
            jobs = jobs_of(bench, clients, 2)
            train = partial(Cohort(bench.model, bench.task, clients, bench.tokens), jobs)
            for at_once in (True, False) if clients > 1 else (False,):
                with patch.object(slots, "_launches_cost", lambda *_, way=at_once: way):
                    rate = tokens(train()) / seconds(train, device, given.repeats)
                way = "at once" if at_once else "client by client"
                print(f"| {batch} | {clients} | {way} | {rate:,.0f} | {rate * each / most:.1%} |", flush=True)


if __name__ == "__main__":
    main()
