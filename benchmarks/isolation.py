"""Seconds of a deployed round, with a process that stays and with one for each message.

    python benchmarks/isolation.py

Two nodes on loopback train the quickstart's backbone on few examples, once as `fedsa-lora node` (process
isolation: one ClientApp process, in which the backbone stays) and once as plain `flower-supernode`
(subprocess isolation: Flower starts a process for every message). A round is one training and one evaluation
of both clients. The first round, which loads everything in both cases, is left out; the rest are given by
their median.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from fedsa_lora.deployment.loopback import Loopback
from fedsa_lora.errors import RunError
from fedsa_lora.runs.reading import read_jsonl

NODES = ("0", "1")
FEW = [
    "experiment=quickstart", "federation.clients=2", "federation.train_examples=[16,24]",
    "federation.validation_examples=0", "federation.test_examples=21", "evaluation.every=1",
    "evaluation.local_only=false",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    measured = {resident: seconds(resident, rounds) for resident in (True, False)}
    print("| isolation | first round, s | median of the others, s |\n|---|---|---|")
    for resident, (first, *others) in measured.items():
        name = "process, resident" if resident else "subprocess"
        print(f"| {name} | {first:.1f} | {statistics.median(others):.1f} |")
    ours, flowers = (statistics.median(measured[resident][1:]) for resident in (True, False))
    print(f"\nsubprocess / process: {flowers / ours:.2f}")


def seconds(resident: bool, rounds: int) -> list[float]:
    """The seconds of each round."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Loopback(Path(folder) / "logs", secure=False) as federation,
    ):
        federation.superlink()
        for name in NODES:
            federation.node(name, resident=resident)
        run_dir = Path(folder) / "run"
        words = [*FEW, *federation.words, f"federation.rounds={rounds}", f"run.dir={run_dir}"]
        if federation.submit("run", *words).wait():
            raise RunError((federation.logs / "submit.log").read_text())
        return [row["seconds"] for row in read_jsonl(run_dir / "rounds.jsonl")]


if __name__ == "__main__":
    main()
