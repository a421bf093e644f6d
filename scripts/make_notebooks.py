"""Make the runs that the notebooks read, and store the notebooks with what they show of them.

Runs that are there already are kept: delete ``runs/notebooks`` to make them again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nbformat
import torch
from jupyter_client import KernelManager
from nbclient import NotebookClient

from fedsa_lora.analysis.evaluation import evaluate_run
from fedsa_lora.runs.inprocess import run_in_process

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KEPT = ["run.keep_trained=true", "run.keep_generations=12"]
BARE = ["evaluation.local_only=false", "evaluation.before=false", "run.report=false"]
LAST = [*BARE, "evaluation.every=0"]
RUNS = {
    "fedsa": KEPT,
    "fedsa-seed1": [*KEPT, *LAST, "seed=1"],
    "alone": [*KEPT, *LAST, "split=local_only", "train.lr=4e-3"],
    "alone-seed1": [*KEPT, *LAST, "split=local_only", "train.lr=4e-3", "seed=1"],
    "int8": [*BARE, "codec=int8", "downlink=int8"],
    "topk": [*BARE, "codec=topk", "downlink=topk"],
    "topk-int8": [*BARE, "codec=topk_int8", "downlink=topk_int8"],
}


def record(folder: Path, experiment: Sequence[str]) -> None:
    """Make every run that the notebooks read and that is not there yet."""
    for name, overrides in RUNS.items():
        if not (folder / name / "summary.json").exists():
            print(f"run {name}", flush=True)
            run_in_process([*experiment, *overrides, f"run.dir={folder / name}"])
    if not (folder / "fedsa" / "evaluation.json").exists():
        evaluate_run(folder / "fedsa", union=True, newcomer_steps=5)


@contextmanager
def kernel(runs: Path) -> Iterator[KernelManager]:
    """A kernel in the folder of the notebooks that reads these runs."""
    manager = KernelManager(kernel_name="python3")
    # what libraries warn of names paths of this machine
    environment = {**os.environ, "FEDSA_LORA_RUNS": str(runs), "PYTHONWARNINGS": "ignore"}
    manager.start_kernel(env=environment, cwd=str(ROOT / "notebooks"))
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def execute(path: Path, manager: KernelManager) -> nbformat.NotebookNode:
    """The notebook with the outputs of all its cells, executed in a running kernel. Raises what a cell
    raises."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, km=manager, timeout=600).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which would change at each making
    return notebook


def main() -> None:
    torch.set_num_threads(1)
    runs = ROOT / "runs" / "notebooks"
    record(runs, ["experiment=quickstart"])
    for path in NOTEBOOKS:
        print(f"execute {path.name}", flush=True)
        with kernel(runs) as manager:  # one for each: cells are numbered from 1
            nbformat.write(execute(path, manager), path)


if __name__ == "__main__":
    main()
