"""Run every test of the reliability matrix and write docs/reliability.md. Run it by: make test-faults

With numbers (scripts/fault_report.py 18 19) only those cases are run and shown, and no page is written.
"""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
MATRIX, PAGE = ROOT / "docs" / "reliability.yaml", ROOT / "docs" / "reliability.md"
AS_EXPECTED, LATER = "as expected", "later"
HEAD = """# Reliability

This page lists the tested faults of a federation, with the required result and the outcome. Made by
`make test-faults` alone, on {date}, in {minutes:.0f} minutes, from the cases of
[reliability.yaml](reliability.yaml). The tests are marked `case(N)` and use the real client, strategy and
store. A row whose outcome is neither "as expected" nor "later" (not implemented yet) is a defect, and the
command fails.

| # | case | expected | tests | trials | outcome | date | command |
|---|---|---|---|---|---|---|---|
"""


@dataclass
class Found:
    """Outcomes of the tests of one case."""

    outcomes: Counter[str] = field(default_factory=Counter)
    trials: int = 0

    @property
    def tests(self) -> int:
        return self.outcomes.total()


class Recorder:
    """A pytest plugin: the outcome of each test by case. A test with several trials reports them by
    ``record_property("trials", n)``."""

    def __init__(self) -> None:
        self.cases: dict[int, Found] = {}
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        before = self._outcomes.get(report.nodeid, "passed")
        self._outcomes[report.nodeid] = report.outcome if before == "passed" else before
        if report.when != "teardown":
            return
        properties = list(report.user_properties)
        trials = sum(int(str(value)) for name, value in properties if name == "trials") or 1
        for case in {int(str(value)) for name, value in properties if name == "case"}:
            found = self.cases.setdefault(case, Found())
            found.outcomes[self._outcomes[report.nodeid]] += 1
            found.trials += trials


def outcome(row: dict[str, object], found: Found | None) -> str:
    """The outcome in a row of the matrix: "as expected" only if all tests of the case passed."""
    if found is None or not found.tests:
        return LATER if row.get("later") else "**no test**"
    bad = [f"{count} {what}" for what, count in sorted(found.outcomes.items()) if what != "passed"]
    return f"**{', '.join(bad)} of {found.tests}**" if bad else AS_EXPECTED


def table(matrix: list[dict[str, object]], cases: dict[int, Found], date: str) -> list[str]:
    """The rows of the page."""
    lines = []
    for row in matrix:
        number = int(str(row["case"]))
        found = cases.get(number)
        counts = f"{found.tests} | {found.trials:,}" if found else "0 | 0"
        said, command = outcome(row, found), f"`pytest -m case --cases {number}`"
        lines.append(
            f"| {number} | {row['what']} | {row['expected']} | {counts} | {said} | {date} | {command} |"
        )
    return lines


def main(numbers: list[str]) -> int:
    recorder, started = Recorder(), time.monotonic()
    arguments = ["-q", "-m", "case", "--all-trials", "--rootdir", str(ROOT)]
    arguments += ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    chosen = ["--cases", ",".join(numbers)] if numbers else []
    code = pytest.main([*arguments, *chosen, str(ROOT / "tests")], plugins=[recorder])
    matrix = [row for row in yaml.safe_load(MATRIX.read_text()) if not numbers or str(row["case"]) in numbers]
    date = datetime.now(UTC).date().isoformat()
    lines = table(matrix, recorder.cases, date)
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        print(f"pytest ended with {code}: no page is written", file=sys.stderr)
        return int(code)
    if not numbers:
        head = HEAD.format(date=date, minutes=(time.monotonic() - started) / 60)
        PAGE.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    fine = all(outcome(row, recorder.cases.get(int(row["case"]))) in (AS_EXPECTED, LATER) for row in matrix)
    return 0 if fine and code == pytest.ExitCode.OK else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
