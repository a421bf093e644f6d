"""How fast the product is, against targets: ``make bench``, ten minutes at most.

Ratios of CPU time, measured side by side in one run and interleaved: each round of the product is followed
by the same round of the bare loop (`bare_loop.py`), and the median of the ratios is the figure. What the
product trains with is what it uses by default. Prints a Markdown table, and writes it with the lowest and
highest ratios as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from bare_loop import QUICKSTART, SMALL, BareLoop, timed
from product import PLAIN, Spent, run
from topk_aggregation import drawn

from fedsa_lora.client import build
from fedsa_lora.client.model import ClientModel
from fedsa_lora.client.workbench import Workbench
from fedsa_lora.config.compose import load
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.launch.plan import LARGEST_COHORT
from fedsa_lora.learning.job import Job
from fedsa_lora.server.build import skeleton
from strategies.rules.updates import mean_update

WARM = 1  # rounds that are not counted: data are read and models loaded
FEW_AND_MANY = (120, 240)  # clients: more than caches of a fixed size have room for
PAYLOAD = 147_456  # bytes of all A of MiniLM with rank 8 on query and value


@dataclass(frozen=True)
class Figure:
    """What was measured, against its target; both in ``unit``. ``low`` and ``high`` are of the repeats."""

    name: str
    value: float
    target: float | None
    low: float
    high: float
    unit: str = ""

    @property
    def line(self) -> str:
        """A row of the table."""
        target = "" if self.target is None else f"<= {self.target:g}"
        met = "" if self.target is None else "yes" if self.value <= self.target else "no"
        spread = f"{self.low:.3g} to {self.high:.3g}"
        wanted = f"{target}{self.unit * bool(target)}"
        return f"| {self.name} | {self.value:.3g}{self.unit} | {spread} | {wanted} | {met} |"


def figure(name: str, values: Sequence[float], target: float | None = None, unit: str = "") -> Figure:
    return Figure(name, statistics.median(values), target, min(values), max(values), unit)


def small_round() -> list[Figure]:
    """A round of sixteen small clients over the bare loop, and what the product spends beside training."""
    rounds, words = 12, (*SMALL, *PLAIN, "evaluation.every=1", "federation.rounds=12")
    spent, bare = _side_by_side(words, rounds)
    fit = [a / b[0] for a, b in zip(spent.fit, bare, strict=True)]
    training = [1e3 * (a - b) / 16 for a, b in zip(spent.fit, spent.fit_trainer, strict=True)]
    measuring = [1e3 * (a - b) / 16 for a, b in zip(spent.evaluate, spent.evaluate_trainer, strict=True)]
    return [
        figure("round of 16 small clients / bare loop", fit[WARM:], 0.60),
        figure("framework, for each client and round", training[WARM:], 3, " CPU-ms"),
        figure("framework, for each client and evaluation", measuring[WARM:], None, " CPU-ms"),
    ]


def quickstart_round() -> list[Figure]:
    """A round of the quickstart, trained and evaluated, in either precision, over the bare loop in fp32."""
    figures = []
    for precision, target in (("fp32", 0.80), ("bf16", 0.55)):
        words = (*QUICKSTART, *PLAIN, "evaluation.every=1", "federation.rounds=4")
        spent, bare = _side_by_side((*words, f"train.precision={precision}"), 4)
        whole = zip(spent.fit, spent.evaluate, bare, strict=True)
        ratios = [(a + b) / sum(c) for a, b, c in whole]
        figures.append(
            figure(f"quickstart's round in {precision} / bare loop in fp32", ratios[WARM:], target)
        )
    sent = [row["bytes_up"] for row in spent.rows if row["phase"] == "fit"]
    shares = [100 * (size - PAYLOAD) / PAYLOAD for size in sent]
    return [*figures, figure("header / payload of an upload of A of MiniLM", shares, 0.15, " %")]


def _side_by_side(words: Sequence[str], rounds: int) -> tuple[Spent, list[tuple[float, float]]]:
    loop = BareLoop(load([*words, "train.precision=fp32"]), rounds)
    bare: list[tuple[float, float]] = []
    spent = run(words, lambda round_: bare.append(timed(loop, round_)))
    return spent, bare


def precision_and_padding() -> list[Figure]:
    """Training alone in bf16 over fp32; tokens that the model computes over those that there are."""
    benches = {p: build.workbench(load([*QUICKSTART, f"train.precision={p}"])) for p in ("fp32", "bf16")}
    for bench in benches.values():
        _train(bench, 0)
    ratios = []
    for repeat in range(1, 4):
        first, second = (_train(bench, repeat) for bench in benches.values())
        ratios.append(second / first)
    together = build.workbench(
        load([*QUICKSTART, "train.precision=fp32", f"machine.cohort={LARGEST_COHORT}"])
    )
    return [
        figure("bf16 / fp32, training alone", ratios, 0.75),
        *_padding(benches["fp32"], "one client at a time"),
        *_padding(together, "several in a pass"),
    ]


def _train(bench: Workbench, round_: int) -> float:
    """CPU seconds of a training of all clients of the quickstart, as one list of jobs."""
    jobs = jobs_of(bench, 10, round_)
    started = time.process_time()
    bench.trainer(jobs)
    return time.process_time() - started


def jobs_of(bench: Workbench, clients: int, round_: int) -> list[Job]:
    """A round's training of the first clients."""
    trained = bench.split(bench.model.layout).trained
    of = [ClientModel(str(client), bench, None) for client in range(clients)]  # type: ignore[arg-type]
    return [client.local(round_, trained, bench.initial).job() for client in of]


def _padding(bench: Workbench, how: str) -> list[Figure]:
    """By the words that reach the model's embeddings."""
    computed: list[int] = []
    embeddings = bench.model.module.get_input_embeddings()
    hook = embeddings.register_forward_pre_hook(lambda module, given: computed.append(given[0].numel()))
    trained = bench.split(bench.model.layout).trained
    clients = [ClientModel(str(client), bench, None) for client in range(10)]  # type: ignore[arg-type]
    figures = []
    for name in ("training", "evaluation"):
        computed.clear()
        jobs, real = [], 0
        for client in clients:
            job = client.local(9, trained, bench.initial).job()
            if name == "evaluation":
                job = client.local(9, trained, bench.initial).still(asked=[client.held_out])
                real += int(client.held_out.lengths.sum())
            real += int(sum(job.examples.lengths[batch].sum() for batch in job.batches))
            jobs.append(job)
        bench.trainer(jobs)
        figures.append(figure(f"tokens computed / real, {name}, {how}", [sum(computed) / real], 1.10))
    hook.remove()
    return figures


def growing() -> list[Figure]:
    """The cost of a client among many over that among few."""
    figures = []
    for many, few in ((200, 20), (1000, 100)):
        costs = {clients: _each(clients) for clients in (few, many)}
        figures.append(figure(f"cost of each client, {many} / {few}", [costs[many] / costs[few]], 1.2))
    return figures


def _each(clients: int) -> float:
    return statistics.median(brief(clients, "experiment=smoke").fit[WARM:]) / clients


def brief(clients: int, *words: str) -> Spent:
    """Three rounds of one step of so many clients with eight examples; the quickstart's model and data where
    the words choose no others."""
    sizes = (
        f"federation.clients={clients}",
        "federation.train_examples=[8,8]",
        "federation.validation_examples=0",
        "federation.test_examples=2",
    )
    return run([*words, *PLAIN, "evaluation.every=0", "federation.rounds=3", "train.steps=1", *sizes])


def aggregation() -> list[Figure]:
    """The mean of the uploads of 200 clients of 197,632 values over a copy of the same bytes."""
    layout = Layout(tuple(TensorSpec(f"{i}.lora_A.weight", (3088,), "A", str(i)) for i in range(64)))
    updates = drawn(layout, 200, 1.0)
    to = np.empty((len(updates), layout.size), np.float32)
    ratios = []
    for _ in range(9):
        started = time.process_time()
        for row, update in zip(to, updates, strict=True):
            np.copyto(row, update.values)
        copied = time.process_time()
        mean_update(layout, updates)
        ratios.append((time.process_time() - copied) / (copied - started))
    return [figure("aggregation / copy of the same bytes", ratios, 0.8)]


ONE_ROUND = """
import tempfile, time, warnings
warnings.simplefilter("ignore")
import torch, transformers, peft, datasets, matplotlib.figure
from fedsa_lora.runs.inprocess import run_in_process
torch.set_num_threads(1)
started = time.process_time()
with tempfile.TemporaryDirectory() as folder:
    run_in_process(["experiment=smoke", "federation.rounds=1", f"run.dir={folder}/run"])
print(time.process_time() - started)
"""
# Not ru_maxrss, which begins with that of the process that starts this one (Linux)
MEMORY = """
import re, sys
from pathlib import Path
sys.path.insert(0, {place!r})
from bench import brief
brief({clients})
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def fresh_processes() -> list[Figure]:
    """A run of one round, report included, after the imports; and how memory grows with clients."""
    seconds = [_said(ONE_ROUND) for _ in range(3)]
    place = str(Path(__file__).parent)
    few, many = (1024 * _said(MEMORY.format(place=place, clients=clients)) for clients in FEW_AND_MANY)
    further = (many - few) / (FEW_AND_MANY[1] - FEW_AND_MANY[0])
    held = 4 * 3 * skeleton(load([])).layout.size  # values and two moments of the optimizer, in fp32
    return [
        figure("one-round run after imports", seconds, 2.0, " CPU-s"),
        figure("memory of each further client / its A, B, head and optimizer state", [further / held], 1.1),
    ]


def _said(code: str) -> float:
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(found.stdout.split()[-1])


PARTS: dict[str, Callable[[], list[Figure]]] = {
    "small": small_round,
    "quickstart": quickstart_round,
    "precision": precision_and_padding,
    "growing": growing,
    "aggregation": aggregation,
    "fresh": fresh_processes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all without")
    parser.add_argument("--to", type=Path, default=Path("build/bench.json"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| | measured | of all repeats | target | met |\n|---|---|---|---|---|")
    figures = []
    for name in given.parts or PARTS:
        found = PARTS[name]()
        figures += found
        for each in found:
            print(each.line, flush=True)
    about = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    given.to.parent.mkdir(parents=True, exist_ok=True)
    given.to.write_text(json.dumps(about | {"figures": [asdict(each) for each in figures]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
