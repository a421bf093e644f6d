"""The methods table: every method of it can be run, and an interrupted one goes on where it was."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import methods_table

from fedsa_lora.config import load


@pytest.mark.parametrize("cell", methods_table.CELLS)
def test_every_method_of_a_cell_binds_and_has_words_of_its_own(cell):
    words = methods_table.methods(cell, quick=False)
    for method in words.values():
        load(methods_table._located(method))
    assert len({tuple(method) for method in words.values()}) == len(words)
    assert set(methods_table.methods(cell, quick=True)) <= set(words)


class Counting:
    """A pool that knows how each rate does, and counts what it is asked for."""

    def __init__(self) -> None:
        self.asked = []

    def map(self, measure, cells):
        self.asked += cells
        return [self.result(cell) for cell in cells]

    @staticmethod
    def result(cell):
        right = {1.5e-3: 0.5, 4e-3: 0.9, 1e-2: 0.7}[cell.lr]
        return {
            "accuracy": {"0": right - 0.1 - cell.seed / 100, "1": right}, "validation": {"0": right},
            "bytes_up": 1000, "bytes_down": 2000, "aggregation_error": None,
            "curve": [{"round": 3, "accuracy": right, "bytes": 5_000_000}],
        }  # fmt: skip


@pytest.fixture
def pool():
    return Counting()


def test_the_best_rate_of_the_search_is_run_on_every_seed_and_no_run_twice(tmp_path, pool):
    path = tmp_path / "runs.jsonl"
    entries = methods_table.compare("dirichlet-snips", False, methods_table.Record(path, pool))
    methods = len(methods_table.methods("dirichlet-snips", quick=False))
    assert len(entries) == methods
    assert {entry["lr"] for entry in entries} == {4e-3}
    assert len(pool.asked) == len({(c.words, c.lr, c.seed) for c in pool.asked}) == 4 * methods
    again = Counting()
    assert methods_table.compare("dirichlet-snips", False, methods_table.Record(path, again)) == entries
    assert again.asked == []


def test_an_interrupted_table_goes_on_and_shows_whole_rows_alone(tmp_path, pool):
    path = tmp_path / "runs.jsonl"
    methods_table.compare("dirichlet-snips", False, methods_table.Record(path, pool))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:21]) + "\n")
    shown = methods_table.compare("dirichlet-snips", False, methods_table.Record(path, None))
    assert [entry["method"] for entry in shown] == list(methods_table.EVERYWHERE)[:4]
    more = Counting()
    methods_table.compare("dirichlet-snips", False, methods_table.Record(path, more))
    assert len(more.asked) == len(lines) - 21
    page = methods_table.document(False, methods_table.Record(path, None))
    assert "| FedSA (share A) | 0.004 | 0.848 | 0.850, 0.845 | 0.790 | 1.0 | 2.0 | 5.0, 5.0 |  |" in page
