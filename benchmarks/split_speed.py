"""Steps a second of split learning, by where clients and server are and by micro-batches.

    python benchmarks/split_speed.py

The small model of `experiment=split/tiny`, batches of sixteen texts. A step with M micro-batches takes M + 1
messages of each client. The ways take turns for each M; the first round of a run, which loads everything, is
left out, and the rest are given by their median. Seconds depend on the machine and on what else it does, so
the ratios say more: each row also has its steps a second over those in one process in the same turn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fedsa_lora.deployment.loopback import CLI, Loopback
from fedsa_lora.errors import RunError
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl

CLIENTS = 3
BRIEF = [
    "experiment=split/tiny", f"federation.clients={CLIENTS}", "train.batch_size=16",
    "federation.test_examples=8", "run.report=false",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of a round")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args()
    brief = [*BRIEF, f"federation.rounds={options.rounds}", f"evaluation.every={options.rounds}"]
    brief.append(f"train.steps={options.steps}")
    print(
        "| where | micro-batches | steps a second, each client | over one process | ms a message |\n"
        "|---|---|---|---|---|"
    )
    for parts in options.micro_batches:
        base = None
        for way in options.ways:
            with tempfile.TemporaryDirectory() as folder:
                run = WAYS[way](Path(folder), [*brief, f"cut.micro_batches={parts}"])
                seconds = statistics.median(
                    row["fit_seconds"] for row in read_jsonl(run / "rounds.jsonl")[1:]
                )
            speed = options.steps / seconds
            base = base or speed
            pace = 1000 * seconds / (options.steps * (parts + 1) + 1)
            print(f"| {way} | {parts} | {speed:.2f} | {speed / base:.3f} | {pace:.0f} |", flush=True)


def alone(folder: Path, words: Sequence[str]) -> Path:
    """All in this process, one client after another."""
    return run_in_process([*words, f"run.dir={folder / 'run'}"])


def commanded(folder: Path, words: Sequence[str]) -> Path:
    """As the command line runs it."""
    command = [*CLI, "run", *words, f"run.dir={folder / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(done.stdout + done.stderr)
    return folder / "run"


def through_ray(folder: Path, words: Sequence[str]) -> Path:
    """In Flower's simulation runtime."""
    return commanded(folder, [*words, "machine.engine=ray"])


def on_nodes(folder: Path, words: Sequence[str], database: bool = True) -> Path:
    """A SuperLink and a node for each client, as processes on loopback."""
    with Loopback(folder / "logs", secure=False, database=database) as federation:
        federation.superlink()
        for client in range(CLIENTS):
            federation.node(str(client))
        run = folder / "run"
        if federation.submit("run", *words, *federation.words, f"run.dir={run}").wait():
            raise RunError((federation.logs / "submit.log").read_text())
        return run


WAYS: dict[str, Callable[[Path, Sequence[str]], Path]] = {
    "one process": alone,
    "processes of this machine": commanded,
    "Ray": through_ray,
    "SuperNodes": on_nodes,
    "SuperNodes, no database": partial(on_nodes, database=False),
}

if __name__ == "__main__":
    main()
