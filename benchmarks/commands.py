"""What whole commands cost: ``python benchmarks/commands.py``, half an hour; with ``--compare`` some hours.

CPU seconds of a command with all processes that it starts, command to report, those that outlive it included
(Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from bench import Figure, figure

COMMANDS = {
    "smoke run, command to report": (["run", "experiment=smoke"], 12.0),
    "quickstart, command to report": (["run"], None),
    "quickstart in bf16, command to report": (["run", "train.precision=bf16"], 110.0),
}
PR_SET_CHILD_SUBREAPER = 36
COMPARE = ["compare", "personalisation"]


def cost(words: list[str]) -> float:
    """CPU seconds of a command. Raises CalledProcessError where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "fedsa_lora.cli", *words], check=True, capture_output=True)
    with suppress(ChildProcessError):  # none is left
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compare", action="store_true", help="the comparison of personalisation as well")
    parser.add_argument("--to", type=Path, default=Path("build/commands.json"))
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # what outlives a command becomes a child of this one
    figures: list[Figure] = []
    print("| | measured | of all repeats | target | met |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (words, target) in COMMANDS.items():
            places = [f"run.dir={folder}/{len(figures)}-{repeat}" for repeat in range(given.repeats)]
            figures.append(figure(name, [cost([*words, place]) for place in places], target, " CPU-s"))
            print(figures[-1].line, flush=True)
        if given.compare:
            hours = cost([*COMPARE, "--to", f"{folder}/compare"]) / 3600
            figures.append(figure("compare personalisation", [hours], 2.4, " CPU-h"))
            print(figures[-1].line, flush=True)
    given.to.parent.mkdir(parents=True, exist_ok=True)
    given.to.write_text(json.dumps([asdict(each) for each in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
