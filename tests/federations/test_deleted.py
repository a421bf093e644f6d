"""A run directory that is deleted, moved or replaced while its run is under way: an error, and no half of it
comes back."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import ClassVar, Self

import pytest
from test_methods import rows
from under_way import under_way

from fedsa_lora import cli
from fedsa_lora.errors import RunError
from fedsa_lora.files import Held
from fedsa_lora.launch.flower_run import Outcome
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.interrupted import close
from fedsa_lora.runs.reading import read_json
from fedsa_lora.server import finish as finishing
from fedsa_lora.store import ClientState, DirectoryStore
from strategies.fedsa import FedSA

WORDS = (
    "experiment=smoke", "federation.clients=2", "federation.rounds=2", "evaluation.local_only=false",
    "evaluation.before=false",
)  # fmt: skip
GONE = "was deleted, moved or replaced while its run was in progress"


def deleted(run: Path) -> None:
    shutil.rmtree(run)


def moved(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def emptied(run: Path) -> None:
    moved(run)
    run.mkdir()


def replaced(run: Path) -> None:
    """By a copy, which has the same files and is another directory."""
    moved(run)
    shutil.copytree(run.with_name("elsewhere"), run)


def refilled(run: Path) -> None:
    """By another run, in the same directory."""
    shutil.copytree(run, run.with_name("elsewhere"))
    for path in run.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(run.with_name("elsewhere"), run, dirs_exist_ok=True)
    known = read_json(run / "environment.json")
    (run / "environment.json").write_text(json.dumps(known | {"run": "another"}))


def when(patch: pytest.MonkeyPatch, phase: str, act) -> None:
    """Act once, when the server begins a phase of the second round, or its summary."""
    if phase == "finish":
        summarise = finishing.summarise

        def summarises(config, folder, model):
            found = summarise(config, folder, model)
            act(folder)
            return found

        patch.setattr(finishing, "summarise", summarises)
        return
    begin = getattr(FedSA, phase)

    def begins(self, server_round, *arguments, **named):
        if server_round == 2:
            act(self.recorder.path)
        return begin(self, server_round, *arguments, **named)

    patch.setattr(FedSA, phase, begins)


def tree(folder: Path) -> dict[Path, bytes]:
    """Everything that is below a folder, with the bytes of files."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


PHASES = ("configure_fit", "aggregate_fit", "aggregate_evaluate", "finish")
ACTS = (deleted, moved, emptied, replaced, refilled)
# By default each act in one phase and each phase with one act; the others are slow.
OFTEN = {("aggregate_fit", act) for act in ACTS} | {(phase, replaced) for phase in PHASES}


@pytest.mark.sampled(3)
@pytest.mark.case(39)
@pytest.mark.parametrize(
    ("phase", "act"),
    [
        pytest.param(phase, act, marks=[] if (phase, act) in OFTEN else pytest.mark.slow)
        for phase in PHASES
        for act in ACTS
    ],
)
def test_a_run_whose_directory_is_gone_fails_and_writes_nothing_in_its_place(
    tmp_path, monkeypatch, act, phase
):
    run, left = tmp_path / "run", {}

    def acts(folder: Path) -> None:
        act(folder)
        left.update(tree(folder))

    when(monkeypatch, phase, acts)
    with pytest.raises(RunError, match=GONE):
        run_in_process([*WORDS, "run.report=true", f"run.dir={run}"])
    assert tree(run) == left
    assert act not in (deleted, moved) or not run.exists()


@pytest.fixture(scope="module")
def completed(tmp_path_factory) -> Path:
    words = [*WORDS, "federation.rounds=1", "run.report=true"]
    return run_in_process([*words, f"run.dir={tmp_path_factory.mktemp('completed') / 'run'}"])


class Replaced:
    """A Flower during which a completed run is put in the place of the run directory."""

    completed: Path
    left: ClassVar[dict[Path, bytes]] = {}
    ends: Outcome | BaseException

    def __init__(self, app: Path, *arguments: object) -> None:
        self.run = app.parent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def follow(self, poll: Callable[[], None]) -> Outcome:
        moved(self.run)
        shutil.copytree(self.completed, self.run)
        self.left.clear()
        self.left.update(tree(self.run))
        poll()
        if isinstance(self.ends, BaseException):
            raise self.ends
        return self.ends


ENDS = {
    "failed": Outcome("failed", "boom"),
    "completed": Outcome("completed", ""),
    "stopped": Outcome("stopped", ""),
    "an error": RunError("the SuperLink does not answer"),
    "a signal": KeyboardInterrupt(),
}


@pytest.mark.sampled(3)
@pytest.mark.case(39)
@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_a_completed_run_in_the_place_of_one_that_ends_is_left_as_it_is(
    tmp_path, monkeypatch, capsys, completed, ends, resumes
):
    monkeypatch.setattr(Replaced, "completed", completed, raising=False)
    monkeypatch.setattr(Replaced, "ends", ends, raising=False)
    monkeypatch.setattr("fedsa_lora.launch.federate.FlowerRun", Replaced)
    run = tmp_path / "run"
    arguments = ["run", *WORDS, "machine.engine=ray", f"run.dir={run}"]
    if resumes:
        shutil.copytree(completed, run)
        more = ["federation.rounds=3", "machine.engine=ray"]
        arguments = ["resume", str(run), *more, "--allow-changes"]
    assert cli.main(arguments) not in (0, None)
    assert tree(run) == Replaced.left
    told = capsys.readouterr().err
    assert f"logs are in {run}" not in told
    assert isinstance(ends, RunError) or GONE in told


@pytest.mark.case(39)
def test_no_end_is_recorded_over_a_completed_run(tmp_path, completed):
    run = shutil.copytree(completed, tmp_path / "run")
    before = tree(run)
    assert not close(run, "failed", "of another run")
    assert tree(run) == before


@pytest.mark.case(39)
def test_a_folder_is_not_the_same_as_one_that_was_put_in_its_place(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with closing(Held(run)) as held:
        assert held.in_place()
        run.rmdir()
        assert not held.in_place()
        run.mkdir()  # perhaps with the inode of the first, were that not held open
        assert not held.in_place()
    with pytest.raises(RunError, match="cannot be written: No such file"):
        Held(tmp_path / "nothing")


@pytest.mark.case(39)
def test_a_run_directory_that_was_moved_is_resumed_where_it_is(tmp_path, monkeypatch):
    run, there = tmp_path / "run", tmp_path / "elsewhere"
    with monkeypatch.context() as patch:
        when(patch, "aggregate_evaluate", moved)
        with pytest.raises(RunError, match=GONE):
            run_in_process([*WORDS, f"run.dir={run}"])
    assert read_json(there / "status.json")["state"] == "running"
    command = read_json(there / "environment.json")["command"].split()[2:]
    run_in_process([*command, f"run.dir={there}", "run.resume=true"])
    assert read_json(there / "status.json")["state"] == "completed"
    assert [row["round"] for row in rows(there)] == [1, 2]


@pytest.mark.case(39)
def test_a_store_whose_root_is_gone_makes_no_new_one(tmp_path):
    root = tmp_path / "run" / "clients"
    store = DirectoryStore(root, "3", "e")
    with pytest.raises(RunError, match="cannot be written: No such file"):
        store.locked()
    with pytest.raises(RunError, match="cannot be written: No such file"):
        store.save(ClientState(1, {}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
@pytest.mark.case(39)
@pytest.mark.parametrize("act", [deleted, moved])
def test_flwr_run_ends_with_an_error_when_its_directory_is_gone(tmp_path, act):
    run = tmp_path / "run"
    words = ["experiment=smoke", "federation.rounds=999", f"run.dir={run}"]
    with under_way(run, words) as process:
        if act is deleted:
            while run.exists():  # the run writes meanwhile
                shutil.rmtree(run, ignore_errors=True)
        else:
            act(run)
        told = process.stderr.read()
        assert process.wait() == cli.EXIT_FAILED
    assert GONE in told
    assert "Traceback" not in told
    assert not run.exists()
