"""CPU seconds of a steady round through Flower's simulation with Ray: ``python benchmarks/steady.py``.

While a command runs, the CPU time of all of its processes is read when a round is recorded, and again some
rounds later, so that neither start nor report counts (Linux). A round of the quickstart is related to the
bare loop (`bare_loop.py`), alone on the machine and in one process on each core: cores that work at the same
time share caches and memory, which raises the CPU time of any program. A round of sixteen small clients in
one pass of one process is related to the same one at a time through Ray.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
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


def against_the_bare_loop(repeats: int) -> list[Figure]:
    """A round of the quickstart, trained and evaluated, through Ray over the bare loop in fp32, alone and in
    as many processes at the same time as Ray has."""
    with loops(1, repeats) as alone, loops(psutil.cpu_count(), repeats) as beside:
        pairs = []
        for repeat in range(repeats):
            through_ray = steady((*QUICKSTART, RAY), 4)
            pairs.append([through_ray / round_of(2 + repeat) for round_of in (alone, beside)])
    name = "quickstart's steady round through Ray / bare loop"
    first, second = zip(*pairs, strict=True)
    return [figure(name, first, 1.05), figure(f"{name}, one on each core at the same time", second)]


@contextmanager
def loops(processes: int, repeats: int) -> Iterator[Callable[[int], float]]:
    """Bare loops of the quickstart, one in each process; plays one round of all at the same time, and returns
    the CPU seconds of one. The first round is played beforehand."""
    of = get_context("spawn")
    with of.Pool(processes, _load_loop, (of.Barrier(processes), 1 + repeats)) as pool:

        def played(round_: int) -> float:
            return sum(pool.map(_play, [round_] * processes, chunksize=1)) / processes

        played(1)
        yield played


_loop: list[tuple[BareLoop, Barrier]] = []  # of a process of ``loops``


def _load_loop(together: Barrier, rounds: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _loop.append((BareLoop(load([*QUICKSTART]), rounds), together))


def _play(round_: int) -> float:
    loop, together = _loop[0]
    together.wait()  # no process plays twice while another waits
    return sum(timed(loop, round_))


def against_ray(repeats: int) -> list[Figure]:
    """A round of sixteen small clients in one pass over the same one at a time through Ray."""
    ratios = []
    for _ in range(repeats):
        ray = steady((*SMALL, RAY, "machine.cohort=1"), 20)
        ratios.append(steady((*SMALL, HERE, "machine.cohort=16"), 20) / ray)
    return [figure("steady round of 16 small clients, in one pass / one at a time through Ray", ratios, 0.52)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # what outlives a command becomes a child of this one
    print("| | measured | of all repeats | target | met |\n|---|---|---|---|---|")
    for measured in (against_the_bare_loop, against_ray):
        for found in measured(repeats):
            print(found.line, flush=True)


if __name__ == "__main__":
    main()
