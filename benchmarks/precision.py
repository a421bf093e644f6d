"""The cost of a training step by precision, dropout and attention: ``python benchmarks/precision.py``.

The trainer of the product on MiniLM, client 0 of the quickstart, and the evaluation of its test part. All
cases take turns in one process on one thread; medians of CPU time, and ratios to float32 as the quickstart
trains. "torch" draws dropout layer by layer with torch's own generator, as before masks were drawn in one
call. Attention with dropout is always computed plainly, so that sdpa and eager differ in evaluation and
without dropout. ``--json FILE`` writes the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from fedsa_lora.config.compose import load
from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.learning.attention import use_attention
from fedsa_lora.learning.dropout import Sites
from fedsa_lora.learning.training import predict, round_batches, train
from fedsa_lora.seeds import generator

WITHOUT = (
    "lora.dropout=0",
    "+model.config.hidden_dropout_prob=0.0",
    "+model.config.attention_probs_dropout_prob=0.0",
)


@dataclass(frozen=True)
class Case:
    """A way to compute the same training."""

    precision: str
    dropout: str
    attention: str


CASES = [
    Case(precision, dropout, attention)
    for precision in ("fp32", "bf16")
    for dropout in ("masks", "torch", "none")
    for attention in ("sdpa", "eager")
]


class Bench:
    """A resident model of a case, and the data of a client."""

    def __init__(self, case: Case, overrides: list[str]) -> None:
        without = WITHOUT if case.dropout == "none" else ()
        config = load([*overrides, f"train.precision={case.precision}", *without])
        self.task, self.settings = config.task, config.train
        self.data = config.task.load_client("0")
        self.model = AdapterModel(attach(config.task.build_model(seed=0), config.lora, 0))
        self.model.hold_frozen(config.train.dtype)
        use_attention(self.model, case.attention)
        if case.dropout == "torch":
            self.model.sites = Sites()
        self.start = initial_state(self.model.layout, 0, config.head.row_norm)

    def timed(self, round_: int, steps: int) -> tuple[float, float]:
        """CPU seconds of a training, by step, and of the evaluation of the test part."""
        settings = replace(self.settings, steps=steps, epochs=None)
        lengths = self.data.train.lengths
        batches = round_batches(lengths, settings, generator(0, "batches", "0", round_))
        self.model.write(self.start)
        names = frozenset(self.model.layout.names)
        started = time.process_time()
        train(
            self.model, self.task, self.data.train, settings,
            trained=names, batches=batches, torch_seed=round_,
        )  # fmt: skip
        trained = time.process_time()
        predict(self.model, self.task, self.data.test, settings)
        return (trained - started) / steps, time.process_time() - trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", default=["experiment=quickstart"])
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    benches = {case: Bench(case, chosen.overrides) for case in CASES}
    spent: dict[Case, list[tuple[float, float]]] = {case: [] for case in CASES}
    for round_ in range(chosen.rounds + 1):
        for case, bench in benches.items():
            spent[case].append(bench.timed(round_, chosen.steps))
    report(spent, chosen.json)


def report(spent: dict[Case, list[tuple[float, float]]], place: Path | None) -> None:
    """Print the table, without the first round, and write it as JSON where there is a ``place``. Ratios are
    medians over rounds of the ratio within a round."""
    rows = []
    print("| precision | dropout | attention | step, CPU-ms | of the first | evaluation | of the first |")
    print("|---|---|---|---|---|---|---|")
    for case, found in spent.items():
        row: dict[str, float] = {}
        for at, name in enumerate(("step", "evaluation")):
            pairs = [(own[at], first[at]) for own, first in zip(found, spent[CASES[0]], strict=True)][1:]
            row[f"{name}_ms"] = 1e3 * statistics.median(own for own, _ in pairs)
            row[f"{name}_ratio"] = statistics.median(own / first for own, first in pairs)
        rows.append(asdict(case) | row)
        print(
            f"| {case.precision} | {case.dropout} | {case.attention} | {row['step_ms']:.1f} | "
            f"{row['step_ratio']:.3f} | {row['evaluation_ms']:.0f} | {row['evaluation_ratio']:.3f} |"
        )
    if place is not None:
        place.write_text(json.dumps({"benchmark": "precision", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
