"""The page of the reliability matrix says what the tests did, and no more."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fault_report import AS_EXPECTED, MATRIX, Found, Recorder, outcome, table

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
import pytest

@pytest.mark.case(1)
@pytest.mark.parametrize("n", [1, 2])
def test_good(n, record_property):
    record_property("trials", 100)

@pytest.mark.case(2, 3)
def test_bad():
    assert False

@pytest.mark.case(3)
def test_fine(): ...

@pytest.mark.case(4)
@pytest.mark.skip
def test_skipped(): ...

@pytest.mark.case(5)
@pytest.mark.xfail
def test_known_to_fail():
    assert False

@pytest.fixture
def broken():
    yield
    raise OSError

@pytest.mark.case(6)
def test_whose_end_fails(broken): ...

def test_of_no_case(): assert False
"""
RUN = """
import sys, pytest
from fault_report import Recorder, table
recorder = Recorder()
pytest.main(sys.argv[1:], plugins=[recorder])
matrix = [{"case": number, "what": "", "expected": ""} for number in range(1, 8)]
print(*table(matrix, recorder.cases, "today"), sep="\\n")
"""


def rows(tmp_path, *arguments: str) -> list[list[str]]:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "matrix.py").read_text())
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-c", RUN, str(tmp_path), "-p", "no:cacheprovider", "-m", "case", *arguments]
    done = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml")],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", "PATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return [
        [cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if line[0:1] == "|"
    ]


def test_every_row_tells_how_many_tests_and_trials_there_were_and_whatever_was_not_good(tmp_path):
    told = {row[1]: (row[4], row[5], row[6]) for row in rows(tmp_path)}
    assert told == {
        "1": ("2", "200", AS_EXPECTED),
        "2": ("1", "1", "**1 failed of 1**"),
        "3": ("2", "2", "**1 failed of 2**"),
        "4": ("1", "1", "**1 skipped of 1**"),
        "5": ("1", "1", "**1 skipped of 1**"),
        "6": ("1", "1", "**1 failed of 1**"),
        "7": ("0", "0", "**no test**"),
    }


def test_a_case_can_be_run_alone(tmp_path):
    told = {row[1]: row[6] for row in rows(tmp_path, "--cases", "1,3")}
    assert told.pop("1") == AS_EXPECTED
    assert told.pop("3") == "**1 failed of 2**"
    assert set(told.values()) == {"**1 failed of 1**", "**no test**"}, "case 2 shares a test with case 3"


def test_what_comes_later_says_so_until_it_has_tests_and_is_judged_as_any_other_then():
    row = {"case": 28, "what": "", "expected": "", "later": True}
    assert outcome(row, None) == outcome(row, Found()) == "later"
    failed = Found()
    failed.outcomes["failed"] += 1
    assert outcome(row, failed) == "**1 failed of 1**"
    assert Recorder().cases == {}


def test_the_matrix_has_every_case_once_and_every_marked_test_a_case_of_it():
    matrix = yaml.safe_load(MATRIX.read_text())
    assert [row["case"] for row in matrix] == list(range(1, 41))
    assert [row["case"] for row in matrix if row.get("later")] == [28, 29]
    assert all(row["what"] and row["expected"] for row in matrix)
    lines = table(matrix, {}, "today")
    assert len(lines) == 40
    marked = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "case"
            ):
                marked |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    assert marked <= {row["case"] for row in matrix}
    assert marked, pytest.mark.case
