"""What importance scores cost a client: `python benchmarks/importance.py`.

MiniLM on the quickstart's texts, 20 steps of 8, the same fit without and with each score one after the
other, in an order that turns from repeat to repeat. Prints a Markdown table of the ratios of CPU time to
the fit without, paired by repeat; "none" is a second fit without, so what it differs from 1 is noise. The
last column is the time within ``observe`` as a share of the fit's own, which machines under load blur less.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Literal, get_args

import torch

from fedsa_lora.config import load
from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.learning.importance import ImportanceMeter, Scoring
from fedsa_lora.learning.training import TrainSettings, round_batches, train
from fedsa_lora.seeds import generator

Score = Literal["gradient", "fisher", "taylor"]
SETTINGS = TrainSettings(steps=20, batch_size=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ratios, shares = measure(repeats)
    fit = f"{SETTINGS.steps} steps of {SETTINGS.batch_size}"
    print(f"CPU time of {fit}, median of {repeats} repeats (lowest, highest)\n")
    print("| score | with / without | within observe / without |\n|---|---|---|")
    for score, found in ratios.items():
        middle, low, high = statistics.median(found), min(found), max(found)
        share = statistics.median(shares[score])
        print(f"| {score} | {middle:.4f} ({low:.4f}, {high:.4f}) | {100 * share:.2f} % |")


def measure(repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """By score, for each repeat: CPU time relative to that without, and the share of ``observe`` in it."""
    fit = prepared()
    kinds: list[Score | None] = [None, *get_args(Score)]
    ratios: dict[str, list[float]] = {str(kind or "none"): [] for kind in kinds}
    shares: dict[str, list[float]] = {str(kind or "none"): [] for kind in kinds}
    fit(None)  # warm-up
    for repeat in range(repeats):
        turn = repeat % len(kinds)
        for kind in kinds[turn:] + kinds[:turn]:
            with_, without = (fit(kind), fit(None)) if repeat % 2 else (fit(None), fit(kind))[::-1]
            ratios[kind or "none"].append(with_[0] / without[0])
            shares[kind or "none"].append(with_[1] / without[0])
    return ratios, shares


def prepared() -> Callable[[Score | None], tuple[float, float]]:
    """A fit from the common start, with a score or without: its CPU seconds, and those of ``observe``."""
    config = load(["experiment=quickstart", "model=minilm"])
    model = AdapterModel(attach(config.task.build_model(seed=0), config.lora))
    examples = config.task.load_client("0").train
    start = initial_state(model.layout, 0)
    names = frozenset(start)
    factors = tuple(spec.name for spec in model.layout if spec.role in ("A", "B"))

    def fit(score: Score | None) -> tuple[float, float]:
        model.write(start)
        meter = None if score is None else ImportanceMeter(Scoring(score, factors))
        within = 0.0

        def observe(seen: AdapterModel) -> None:
            nonlocal within
            before = time.process_time()
            assert meter is not None
            meter.observe(seen)
            within += time.process_time() - before

        before = time.process_time()
        train(
            model,
            config.task,
            examples,
            SETTINGS,
            trained=names,
            batches=round_batches(examples.lengths, SETTINGS, generator(0, "fit")),
            torch_seed=0,
            observe=observe if meter else None,
        )
        if meter is not None:
            meter.scores().means()
        return time.process_time() - before, within

    return fit


if __name__ == "__main__":
    main()
