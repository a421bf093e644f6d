"""Runs that several tests look at, made once: the real ServerApp and ClientApp, in this process; and which
case of the reliability matrix a test holds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

from fedsa_lora.runs.inprocess import run_in_process

Runner = Callable[..., Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases", help="run only the tests of these cases of the reliability matrix, e.g. 18,19"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each test tells its cases in its report, where scripts/fault_report.py finds them."""
    asked = {int(number) for number in (config.getoption("--cases") or "").split(",") if number}
    cases = {item: {number for mark in item.iter_markers("case") for number in mark.args} for item in items}
    for item, numbers in cases.items():
        item.user_properties += [("case", number) for number in sorted(numbers)]
    items[:] = [item for item in items if not asked or asked & cases[item]]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # bits depend on the order of sums


@pytest.fixture(scope="session", autouse=True)
def _task() -> None:
    """Messages are made outside of a process of Flower's, which would say whose they are."""
    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="session")
def run_smoke(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Run the smoke experiment with overrides, and return its run directory; no report but on request."""

    def run(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("run") / "run"
        return run_in_process(["experiment=smoke", "run.report=false", *overrides, f"run.dir={folder}"])

    return run


@pytest.fixture(scope="session")
def smoke_run(run_smoke: Runner) -> Path:
    """FedSA-LoRA with a local head, kept messages and every evaluation."""
    return run_smoke("run.report=true", "run.keep_messages=true", "run.keep_generations=9")
