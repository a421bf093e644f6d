"""Completion, as a shell asks for it: in a process of its own, with what was typed in the environment."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedsa_lora
from fedsa_lora.cli import main
from fedsa_lora.commands.screen import EXIT_FAILED

ROOT = Path(fedsa_lora.__file__).parent.parent


def completed(folder: Path, line: str) -> list[str]:
    """The ways in which a shell may go on from what is typed in a folder."""
    answer = folder / "answer"
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_TYPE": "9", "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }  # fmt: skip
    command = [sys.executable, "-m", "fedsa_lora.cli"]
    subprocess.run(command, env=os.environ | asked, cwd=folder, check=True, capture_output=True)
    return answer.read_text().split()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("typed", "ways"),
    [
        ("ru", ["run"]),
        ("run seed=1 split=share", ["split=share_a", "split=share_ab", "split=share_b"]),
        ("run train.l", ["train.lr="]),
        ("run experiment=mi", ["experiment=mine"]),
        ("advise before", ["before.yaml"]),
        ("compare vis", ["vision"]),
        ("list hea", ["head"]),
    ],
)
def test_commands_options_keys_and_files_are_completed(typed, ways, tmp_path):
    pytest.importorskip("argcomplete", reason="it is in the extra completion")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\n")
    (tmp_path / "before.yaml").write_text("")
    assert completed(tmp_path, f"fedsa-lora {typed}") == ways


def test_a_shell_is_given_its_script(capsys):
    pytest.importorskip("argcomplete", reason="it is in the extra completion")
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert "fedsa-lora" in capsys.readouterr().out


def test_without_the_package_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert main(["completion", "bash"]) == EXIT_FAILED
    assert "pip install 'fedsa-lora[completion]'" in capsys.readouterr().err
