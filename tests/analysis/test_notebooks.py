"""Every notebook runs from its first cell to its last on runs of the smoke experiment, and draws."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from make_notebooks import NOTEBOOKS, RUNS, execute, kernel, record


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    """A kernel for all of them, so that libraries are imported once."""
    folder = tmp_path_factory.mktemp("runs")
    record(folder, ["experiment=smoke", "run.report=false"])
    with kernel(folder) as manager:
        yield manager


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem[:2] in ("01", "02"))) for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs_on_any_run(path: Path, manager: KernelManager) -> None:
    client = manager.blocking_client()
    client.start_channels()
    client.execute("%reset -f", reply=True)  # no name of another notebook is left
    client.stop_channels()
    stored, executed = nbformat.read(path, as_version=4), execute(path, manager)
    assert pictures(executed) == pictures(stored) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_what_it_shows_and_only_reads(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    code = "\n".join(cell.source for cell in cells)
    assert not any(word in code for word in ("run_in_process", "train(", "torch"))
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]


def test_there_are_four_notebooks_and_they_read_every_run_that_is_made() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]
    code = "".join(path.read_text(encoding="utf-8") for path in NOTEBOOKS)
    assert all(f'\\"{name}\\"' in code for name in RUNS)
