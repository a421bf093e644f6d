"""CPU time of two runs of ten clients in one pass over that of a pass for each, side by side in one process.

    python benchmarks/one_pass.py [--repeat 5]

MiniLM as `fedsa-lora compare` trains it: without dropout, attention without a fused kernel, batches of 8. A
ratio is the median of those of the turns, each with other batches; below 1, runs gain from one pass.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from cohort import asking, seconds, training

from fedsa_lora.config.compose import load
from fedsa_lora.learning.adapters import AdapterModel, attach
from fedsa_lora.learning.cohort import Cohort
from fedsa_lora.learning.job import Job

CLIENTS = 10
WORDS = [
    "experiment=quickstart", f"federation.clients={CLIENTS}", "lora.dropout=0",
    "+model.config.hidden_dropout_prob=0", "+model.config.attention_probs_dropout_prob=0",
    "+model.config.attn_implementation=eager",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    torch.set_num_threads(1)
    config = load(WORDS)
    print("| precision | | one pass over two |\n|---|---|---|")
    for precision in ("bf16", "fp32"):
        model = AdapterModel(attach(config.task.build_model(seed=0), config.lora))
        if precision == "bf16":
            model.hold_frozen(torch.bfloat16)
        one, both = Cohort(model, config.task, CLIENTS), Cohort(model, config.task, 2 * CLIENTS)
        clients = [str(k) for k in range(CLIENTS)]
        kinds: dict[str, list[list[list[Job]]]] = {  # by turn, the jobs of each run
            "training": [
                [
                    [training(config.task, model, k, 8, precision, 2 * turn + run) for k in clients]
                    for run in range(2)
                ]
                for turn in range(repeat + 1)
            ],
            "answers": [[[asking(config.task, model, k, precision) for k in clients]] * 2] * (repeat + 1),
        }
        for kind, turns in kinds.items():
            ratios = [
                seconds(both, [*first, *second]) / (seconds(one, first) + seconds(one, second))
                for first, second in turns
            ]
            print(f"| {precision} | {kind} | {statistics.median(ratios[1:]):.2f} |", flush=True)


if __name__ == "__main__":
    main()
