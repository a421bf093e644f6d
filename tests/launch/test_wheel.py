"""The wheel, installed by pip: a federation runs in an empty folder, from the files in the wheel alone."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fedsa_lora

ROOT = Path(fedsa_lora.__file__).parent.parent

pytestmark = pytest.mark.slow


def done(*command: str | Path, cwd: Path) -> str:
    """Output of a command that knows nothing of this checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Path:
    """The command of the wheel, in an environment with the packages of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    done(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    done(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python, [wheel] = folder / "venv" / "bin" / "python", folder.glob("*.whl")
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    done(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)
    [packages] = (folder / "venv" / "lib").glob("*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    place = done(python, "-c", "import fedsa_lora; print(fedsa_lora.__file__)", cwd=folder)
    assert Path(place.strip()).is_relative_to(packages)
    return folder / "venv" / "bin" / "fedsa-lora"


def test_a_federation_runs_in_an_empty_folder(command, tmp_path):
    brief = ["federation.clients=2", "federation.rounds=1"]
    found = json.loads(done(command, "run", "experiment=smoke", *brief, "--json", cwd=tmp_path))
    run = Path(found["run_dir"])
    assert run.parent == tmp_path / "runs"
    assert (run / "report.html").is_file()
    assert (run / "app" / "conf" / "run.yaml").is_file()
    assert (run / "app" / "pyproject.toml").is_file()
    again = json.loads(done(command, "run", run / "config.yaml", "--dry-run", "--json", cwd=tmp_path))
    assert again["changes"] == {word.split("=")[0]: word.split("=")[1] for word in brief}


def test_an_experiment_of_ones_own_is_written_and_runs(command, tmp_path):
    done(command, "new", "mine", cwd=tmp_path)
    assert "mine " in done(command, "list", "experiment", cwd=tmp_path)
    quick = ["model=tiny_bert", "federation.clients=2", "federation.rounds=1"]
    found = json.loads(done(command, "run", "experiment=mine", *quick, "--json", cwd=tmp_path))
    assert found["summary"]["name"] == "mine"
    assert (Path(found["run_dir"]) / "app" / "conf" / "experiment" / "mine.yaml").is_file()
    assert done(command, "--version", cwd=tmp_path).startswith("fedsa-lora ")
