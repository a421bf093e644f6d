"""Makes the runs that a comparison needs: in worker processes, several at a time, each recorded at once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from fedsa_lora.client.device import usable_cores
from fedsa_lora.compare.grid import Grid, Run
from fedsa_lora.compare.measure import attempt
from fedsa_lora.compare.record import Record
from fedsa_lora.compare.search import Search
from fedsa_lora.errors import RunError
from fedsa_lora.launch.federate import progress_line
from fedsa_lora.report.wording import shown
from fedsa_lora.runs.reading import Row
from fedsa_lora.stopping import end_with_parent

WORKER_BYTES = 2e9  # of one worker with a small backbone
SPEED_WINDOW = 3600.0  # seconds: a run takes longer than rich looks back for the speed
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore:resource_tracker",  # it cleans up after workers that were ended, and complains
}


class Here(Executor):
    """Runs in this process, one after the other."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def make(
    grid: Grid,
    searches: Sequence[Search],
    record: Record,
    processes: int,
    console: Console,
    measure: Callable[[Path], Row],
) -> None:
    """Make every run that is missing in the record, the first methods first, until all are settled.

    A run that fails is recorded with its reason. Raises RunError when a worker process dies.
    """
    flying: dict[Future[Row], Run] = {}
    with (
        tempfile.TemporaryDirectory(prefix="fedsa-compare-", ignore_cleanup_errors=True) as scratch,
        progress_line(console, SPEED_WINDOW) as progress,
        _workers(processes, Path(scratch)) as workers,
    ):
        line = _Line(progress, searches, record)
        while True:
            for run in _next(searches, record, [*flying.values()], processes):
                flying[workers.submit(attempt, grid.overrides(run), measure, Path(scratch))] = run
            if not flying:
                return
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                run = flying.pop(future)
                record.add(run, _outcome(future, record.path))
                line.update(run)


def at_once() -> int:
    """Number of runs at a time: one for each core, as many as memory holds."""
    return max(1, min(usable_cores(), int(psutil.virtual_memory().available / WORKER_BYTES)))


def _next(searches: Sequence[Search], record: Record, flying: list[Run], processes: int) -> Iterator[Run]:
    """The first runs that are needed and not under way, as many as there are idle workers."""
    taken = {run.key for run in flying}
    for search in searches:
        for run in search.needed(record):
            if len(taken) >= processes:
                return
            if run.key not in taken:
                taken.add(run.key)
                yield run


def _outcome(future: Future[Row], path: Path) -> Row:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RunError(
            f"a worker process died, perhaps out of memory: finished runs are in {path}; continue with "
            f"--resume and fewer --processes"
        ) from error


@contextmanager
def _workers(processes: int, scratch: Path) -> Iterator[Executor]:
    """Fresh processes that keep what they imported, or this one when one is enough. However it ends, none of
    them is left behind."""
    if processes == 1:
        yield Here()
        return
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    pool = ProcessPoolExecutor(processes, _context(), _end_with_parent, (scratch,))
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):  # nobody waits for what is under way
            process.kill()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def _end_with_parent(scratch: Path) -> None:
    """Leave the end of a worker to its parent; when that vanishes, it removes what it was writing."""

    def remove() -> None:
        for _ in range(100):  # the run that is under way still writes, until its folder is gone
            shutil.rmtree(scratch, ignore_errors=True)
            if not scratch.exists():
                break
            time.sleep(0.05)

    end_with_parent(remove)


def _context() -> BaseContext:
    """Workers that share one start of the imports, where the system can fork; never a copy of this process,
    of which threads and a GPU may be in use."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([attempt.__module__, "flwr_datasets.partitioner"])
    return context


class _Line:
    """The progress line: runs that are settled of all that are needed; in a log, a line for each run."""

    def __init__(self, progress: Progress, searches: Sequence[Search], record: Record) -> None:
        self.progress, self.searches, self.record = progress, searches, record
        total = sum(search.length for search in searches)
        self.bar = progress.add_task("starting", total=total, completed=self._settled(), facts="")

    def update(self, run: Run) -> None:
        result = self.record.result(run)
        said = "failed" if result is None else shown(result.mean, result.measure)
        facts = f"{run.entry.method}, lr {run.lr:g}, seed {run.seed}: {said}"
        self.progress.update(
            self.bar, completed=self._settled(), description=run.entry.regime, facts=escape(facts)
        )
        if self.progress.disable:  # a log has no line that moves
            self.progress.console.print(f"{run.entry.regime}, {facts}", markup=False, soft_wrap=True)

    def _settled(self) -> int:
        return sum(search.settled(self.record) for search in self.searches)
