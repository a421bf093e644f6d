"""What a command answers without a model: before the libraries that train, which take seconds, are loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_run import write_run

import fedsa_lora

ROOT = Path(fedsa_lora.__file__).parent.parent
TRAIN = {"torch", "transformers", "peft", "ray"}
DATA = {"datasets", "flwr_datasets", "pandas", "sklearn"}
LOADED = """
import sys
from fedsa_lora.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(code, *sorted(name for name in sys.modules if "." not in name))
"""


def loaded(*arguments: str, cwd: Path) -> tuple[int, set[str]]:
    """The exit code of a command, and the packages that it loads in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LOADED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=True)
    print(done.stderr, file=sys.stderr)
    code, *names = done.stdout.splitlines()[-1].split()
    return int(code), set(names)


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["watch", "run", "--once"],
        ["list", "lora"],
        ["new", "a"],
    ],
)
def test_what_needs_no_model_is_answered_without_libraries_of_models_or_flower(words, tmp_path):
    write_run(tmp_path / "run", clients=2, rounds=2)
    code, names = loaded(*words, cwd=tmp_path)
    assert code == 0
    assert not names & (TRAIN | DATA | {"flwr", "hydra"})


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "words", [["resume", "nowhere"], ["evaluate", "nowhere"], ["export", "nowhere", "--client", "0"]]
)
def test_a_folder_without_a_run_is_reported_without_libraries_that_train(words, tmp_path):
    code, names = loaded(*words, cwd=tmp_path)
    assert code == 1
    assert not names & (TRAIN | DATA)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["task.dataset=/nowhere.csv"], {"no data at '/nowhere.csv'"}),
        (["task=gsm8k", "task.dataset=/nowhere"], {"no data at '/nowhere'"}),
        (["task=text", "task.files.train=/nowhere.csv"], {"no data at '/nowhere.csv' for split 'train'"}),
        (["task=text", "task.dataset=here"], {"has no split 'train'"}),
        (["task=image", "model.path=/nowhere"], {"no model at '/nowhere'"}),
        (["model.path=pkg://no_such/model"], {"package 'no_such' is not installed"}),
        (
            ["task=text", "task.dataset=/nowhere.csv", "model.path=/nowhere", "run.dir=run"],
            {"no data at '/nowhere.csv'", "no model at '/nowhere'", "already holds a run", "3 faults"},
        ),
    ],
)
def test_places_that_are_not_there_are_reported_at_once_and_without_libraries_that_train(
    words, told, tmp_path, capfd
):
    (tmp_path / "here").mkdir()
    write_run(tmp_path / "run", clients=2, rounds=2)
    code, names = loaded("run", *words, cwd=tmp_path)
    assert code == 1
    assert not names & (TRAIN | DATA | {"matplotlib"})
    said = capfd.readouterr().err
    assert [fault for fault in told if fault not in said] == []


def test_faults_of_a_config_are_reported_without_libraries_that_train(tmp_path):
    words = ["train.lr=-1", "trian.lr=1", "split=share_aa", "lora.r=0.5", "strategy.fraction_fit=half"]
    code, names = loaded("run", *words, cwd=tmp_path)
    assert code == 1
    assert not names & (TRAIN | DATA)


ADAPTIVE = """
from dataclasses import dataclass

from fedsa_lora.exchange.split import SplitPolicy


@dataclass(frozen=True, kw_only=True)
class Mine(SplitPolicy):
    adaptive = True

    def of(self, role):
        return {"A": "shared", "B": "local", "head": self.head, "base": "frozen"}[role]
"""


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("compare nosuch", "nosuch: no such grid"),
        ("compare /nowhere.yaml", "/nowhere.yaml: no such grid"),
        ("compare methods nosuch=1", "nosuch: no such key"),
        ("compare methods task.dataset=/nowhere", "no data at '/nowhere'"),
        ("advise train.lr=-1", "train.lr: -1 is out of range"),
        ("advise nosuch=1", "nosuch: no such key"),
        ("run experiment=smoke split=least_variance split.count=9", "split.count=9: the model has 2 layers"),
        ("run experiment=smoke split=layer_wise split.last=9", "split asks for 9 layers"),
        ("run experiment=smoke split={_target_:mine.Mine}", "nothing chooses for Mine"),
        ("run experiment=smoke run.dir=mine.py/run", "mine.py/run cannot be made: Not a directory"),
    ],
)
def test_a_fault_is_told_once_without_libraries_that_train(words, told, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "mine")
    (tmp_path / "mine.py").write_text(ADAPTIVE)
    code, names = loaded(*words.split(), cwd=tmp_path)
    assert code == 1
    assert not names & (TRAIN | DATA | {"matplotlib"})
    assert capfd.readouterr().err.count(told) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"mine.py", "__pycache__"}


def test_a_client_that_a_run_does_not_have_is_told_without_libraries_that_train(smoke_run, tmp_path, capfd):
    code, names = loaded("export", str(smoke_run), "--client", "99", cwd=tmp_path)
    assert code == 1
    assert not names & (TRAIN | DATA | {"matplotlib"})
    assert "no client '99' in " in capfd.readouterr().err
