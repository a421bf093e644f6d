"""The cases of the reliability matrix that a test holds, and how often one tries what it tries."""

from __future__ import annotations

from collections.abc import Callable

import pytest

PART = 10  # of the trials that make test-faults has, those of make test are one in so many


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases", help="run only the tests of these cases of the reliability matrix, e.g. 18,19"
    )
    parser.addoption(
        "--all-trials", action="store_true", help="try as often as the reliability matrix says, not a tenth"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each test tells its cases in its report, where scripts/fault_report.py finds them."""
    asked = {int(number) for number in (config.getoption("--cases") or "").split(",") if number}
    cases = {item: {number for mark in item.iter_markers("case") for number in mark.args} for item in items}
    for item, numbers in cases.items():
        item.user_properties += [("case", number) for number in sorted(numbers)]
    items[:] = [item for item in items if not asked or asked & cases[item]]


@pytest.fixture(scope="session")
def trials(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """The number of trials of so many that are made: all under make test-faults, else a tenth."""
    if request.config.getoption("--all-trials"):
        return lambda number: number
    return lambda number: max(1, number // PART)
