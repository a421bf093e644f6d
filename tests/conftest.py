"""Runs that several tests look at, made once: the real ServerApp and ClientApp, in this process. The order of
tests. Fixtures import what trains: the process that only hands tests to others needs none of it."""

import gc
import signal
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import matrix
import pytest
from matrix import pytest_addoption, trials

__all__ = ["pytest_addoption", "trials"]

Runner = Callable[..., Path]
LONGEST = (
    "test_flwr_run.py", "test_methods.py", "test_client.py", "test_federation.py",
    "test_unreliable.py", "test_resume.py", "test_small_clients.py", "test_unlearning_runs.py",
    "test_discretion.py", "test_export.py", "test_notebooks.py", "test_compare_command.py",
    "test_cut_runs.py", "test_clip_module.py", "test_engines.py", "test_personal_runs.py",
    "test_attack.py", "test_launch.py", "test_finish.py", "test_hostile_clients.py",
    "test_global_model.py", "test_evaluation.py", "test_lora_variants.py", "test_cohort.py",
    "test_config.py",
)  # fmt: skip

gc.disable()  # while modules are imported: what they define stays
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a shell's background job: processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection() -> None:
    """Before modules are imported, whose tests take on the settings of then: examples of hypothesis take as
    long as the machine does."""
    from hypothesis import settings

    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")


def pytest_collection_finish() -> None:
    """No collection of garbage looks at the half a million objects of the modules again."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of the cases that were asked for, those of the longest files first: none is left for the end,
    when other workers have nothing to do."""
    matrix.pytest_collection_modifyitems(config, items)
    _leave_to_slow(items)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def _leave_to_slow(items: list[pytest.Item]) -> None:
    """Of a test that is ``sampled(n)`` one in n sets of parameters is among make test's, beginning with the
    first; make slow has the others."""
    seen: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("sampled")
        if mark is None or item.get_closest_marker("slow") is not None:
            continue
        test = item.nodeid.partition("[")[0]
        if seen[test] % mark.args[0]:
            item.add_marker("slow")
        seen[test] += 1


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # bits depend on the order of sums


@pytest.fixture(scope="session", autouse=True)
def _task() -> None:
    """Messages are made outside of a process of Flower's, which would say whose they are."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="session")
def run_smoke(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Run the smoke experiment with overrides, and return its run directory; no report but on request."""
    from fedsa_lora.runs.inprocess import run_in_process

    def run(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("run") / "run"
        return run_in_process(["experiment=smoke", "run.report=false", *overrides, f"run.dir={folder}"])

    return run


@pytest.fixture(scope="session")
def run_once(run_smoke: Runner) -> Runner:
    """As ``run_smoke``, but that a run is made once for the same words: to be looked at alone."""
    return cache(run_smoke)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without the figures of a run, which take longer than a brief run: for laws about all else."""
    from fedsa_lora.report import page
    from fedsa_lora.server import finish

    monkeypatch.setattr(page, "embedded_figures", lambda *_: [])
    monkeypatch.setattr(finish, "draw_all", lambda _: {})


@pytest.fixture(scope="session")
def smoke_run(run_smoke: Runner) -> Path:
    """FedSA-LoRA with a local head, kept messages and every evaluation."""
    kept = ("run.keep_messages=true", "run.keep_generations=9")
    return run_smoke("run.report=true", "evaluation.before_each=true", *kept)
