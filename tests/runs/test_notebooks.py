"""Every notebook runs from its first cell to its last on runs of the smoke experiment, and draws."""

from pathlib import Path

import nbformat
import pytest
from make_notebooks import NOTEBOOKS, RUNS, execute, record


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    record(folder, ["experiment=smoke", "run.report=false"])
    return folder


def pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_any_run(path: Path, runs: Path) -> None:
    stored, executed = nbformat.read(path, as_version=4), execute(path, runs)
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
