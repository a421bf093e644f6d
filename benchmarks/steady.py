"""CPU seconds of a steady round through Flower's simulation with Ray: ``python benchmarks/steady.py``.

While a command runs, the CPU time of all of its processes is read when a round is recorded, and again some
rounds later, so that neither start nor report counts (Linux). A round of the quickstart is related to the
bare loop (`bare_loop.py`), one of sixteen small clients in one pass of one process to the same one at a time
through Ray.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from bare_loop import QUICKSTART, SMALL, BareLoop, timed
from bench import Figure, figure
from commands import PR_SET_CHILD_SUBREAPER
from product import PLAIN

from fedsa_lora.config.compose import load
from fedsa_lora.runs.reading import Growing

BEFORE = 2  # rounds that are not counted: data are read and models loaded
RAY, HERE = "machine.engine=ray", "machine.engine=inprocess"


def steady(words: Sequence[str], rounds: int) -> float:
    """CPU seconds of one of the ``rounds`` after the first ones. Raises CalledProcessError where the run
    fails."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        last = f"federation.rounds={BEFORE + rounds}"
        command = [sys.executable, "-m", "fedsa_lora.cli", "run", *words, *PLAIN, "evaluation.every=1", last]
        run = subprocess.Popen(
            [*command, f"run.dir={place}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        rows, spent = Growing(place / "rounds.jsonl"), {}
        while run.poll() is None:
            for row in rows.rows():
                spent[row["round"]] = cpu_below()
            time.sleep(0.005)
        if run.returncode:
            raise subprocess.CalledProcessError(run.returncode, command)
    return (spent[BEFORE + rounds] - spent[BEFORE]) / rounds


def cpu_below() -> float:
    """CPU seconds of all processes that this one has started, directly or not, and that live."""
    seconds = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def against_the_bare_loop(repeats: int) -> Figure:
    """A round of the quickstart, trained and evaluated, through Ray over the bare loop in fp32."""
    loop, ratios = BareLoop(load([*QUICKSTART]), 1 + repeats), []
    timed(loop, 1)
    for repeat in range(repeats):
        bare = sum(timed(loop, 2 + repeat))
        ratios.append(steady((*QUICKSTART, RAY), 4) / bare)
    return figure("quickstart's steady round through Ray / bare loop", ratios, 1.05)


def against_ray(repeats: int) -> Figure:
    """A round of sixteen small clients in one pass over the same one at a time through Ray."""
    ratios = []
    for _ in range(repeats):
        ray = steady((*SMALL, RAY, "machine.cohort=1"), 20)
        ratios.append(steady((*SMALL, HERE, "machine.cohort=16"), 20) / ray)
    return figure("steady round of 16 small clients, in one pass / one at a time through Ray", ratios, 0.52)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # what outlives a command becomes a child of this one
    print("| | measured | of all repeats | target | met |\n|---|---|---|---|---|")
    for measured in (against_the_bare_loop, against_ray):
        print(measured(repeats).line, flush=True)


if __name__ == "__main__":
    main()
