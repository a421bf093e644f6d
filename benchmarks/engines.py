"""CPU seconds of a smoke run, from the command to its report, in each engine and in one process.

    python benchmarks/engines.py

The engines take turns; medians of the CPU time of all processes that a command starts, those that outlive
their parents included (Linux). That of one process is without its imports.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from commands import PR_SET_CHILD_SUBREAPER, cost

ENGINES = ("inprocess", "ray")
ALONE = """
import sys, time
from fedsa_lora.runs.inprocess import run_in_process
began = time.process_time()
run_in_process(sys.argv[1:])
print(time.process_time() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", default=["experiment=smoke"])
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # whoever outlives its parent becomes our child
    found: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    alone = []
    for _ in range(options.repeats):
        for engine in ENGINES:
            found[engine].append(cpu_seconds([*options.overrides, f"machine.engine={engine}"]))
        alone.append(in_one_process(options.overrides))
    medians = {engine: statistics.median(seconds) for engine, seconds in found.items()}
    print("| engine | CPU seconds, command to report | over inprocess |\n|---|---|---|")
    for engine, seconds in medians.items():
        print(f"| {engine} | {seconds:.1f} | {seconds / medians['inprocess']:.2f} |")
    print(f"\nrun_in_process, after the imports: {statistics.median(alone):.1f} CPU seconds")


def cpu_seconds(words: list[str]) -> float:
    """CPU seconds of `fedsa-lora run` and of all that it starts."""
    with tempfile.TemporaryDirectory() as folder:
        return cost(["run", *words, f"run.dir={Path(folder) / 'run'}"])


def in_one_process(words: list[str]) -> float:
    """CPU seconds of the same run in one process, less its imports."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", ALONE, *words, f"run.dir={Path(folder) / 'run'}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
