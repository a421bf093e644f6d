"""Config files of one's own, and the commands that show and write them."""

import shutil
from pathlib import Path

import pytest

from fedsa_lora.cli import main
from fedsa_lora.commands.screen import EXIT_FAILED
from fedsa_lora.config.compose import load
from fedsa_lora.config.options import CONF, about, groups
from fedsa_lora.errors import ConfigError
from fedsa_lora.launch.federate import stage_app
from fedsa_lora.launch.resuming import to_resume
from fedsa_lora.runs.directory import RunDirectory


@pytest.fixture(autouse=True)
def _in_a_folder_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "a, folder's").mkdir()
    monkeypatch.chdir(tmp_path / "a, folder's")


def own(name: str, text: str) -> Path:
    path = Path("conf", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def mine() -> None:
    own(
        "experiment/mine.yaml",
        "# @package _global_\ndefaults:\n  - smoke\n  - override /head: ours\nname: mine\n",
    )
    own("head/ours.yaml", "# A head of ours.\ndefaults:\n  - local\nrow_norm: 2.0\n")


def test_every_file_that_is_shipped_says_in_a_line_what_it_is():
    lines = {path: about(path) for group in groups() for path in (CONF / group).rglob("*.yaml")}
    assert [path for path, line in lines.items() if len(line) < 10 or line[0] in "@#"] == []
    assert not any(line.startswith("fedsa-lora ") for line in lines.values())


def test_a_file_in_conf_of_the_working_directory_is_an_option_as_any_other(mine, capsys):
    config = load(["experiment=mine"])
    assert (config.name, config.head.row_norm, config.federation.clients) == ("mine", 2.0, 4)
    assert main(["list", "head"]) == 0
    assert "ours    A head of ours.\n" in capsys.readouterr().out
    own("head/ours.yaml", "policy: local\nrow_norm: 3.0\n")
    assert load(["experiment=smoke", "head=ours", "head.degree=null"]).head.row_norm == 3.0, "as it is now"


def test_a_name_that_is_taken_is_refused_and_a_copy_is_not():
    shutil.copytree(CONF, "conf")
    assert load(["experiment=smoke"]).name == "smoke"
    for name in ("run.yaml", "head/local.yaml"):
        own(name, "policy: local\n")
        with pytest.raises(ConfigError, match=rf"conf/{name}: a file of this name is shipped"):
            load(["experiment=smoke"])
        shutil.copy(CONF / name, Path("conf", name))


def test_a_file_that_is_no_yaml_is_named():
    own("experiment/bad.yaml", "# @package _global_\na: [\n")
    with pytest.raises(ConfigError, match=r"experiment/bad\.yaml"):
        load(["experiment=bad"])


def test_a_run_from_outside_reads_no_file_of_the_working_directory(mine, tmp_path):
    with pytest.raises(ConfigError, match="experiment=mine: no such option"):
        load(["experiment=mine"], folders=[tmp_path])


def test_a_run_takes_its_files_along_and_is_resumed_with_them_from_anywhere(mine, tmp_path, monkeypatch):
    config = load(["experiment=mine", f"run.dir={tmp_path}/run"])
    RunDirectory.create(config, command="fedsa-lora run experiment=mine").close()
    app = stage_app(tmp_path / "run" / "app")
    assert (app / "conf" / "head" / "ours.yaml").is_file()
    assert (app / "conf" / "run.yaml").is_file()
    assert not (app / "fedsa_lora" / "conf").exists()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="experiment=mine: no such option"):
        load(["experiment=mine"])
    resumed, _ = to_resume(tmp_path / "run")
    assert resumed.head == config.head


def test_a_new_experiment_is_written_once_and_is_a_valid_one(capsys):
    assert main(["new", "vision/2nd"]) == 0
    text = Path("conf/experiment/vision/2nd.yaml").read_text()
    assert "experiment=vision/2nd" in text
    assert "NAME" not in text
    config = load(["experiment=vision/2nd", "train.lr=0.5"])
    assert (config.name, config.lora.r, config.train.lr) == ("2nd", 8, 0.5)
    assert main(["new", "vision/2nd"]) == EXIT_FAILED
    assert "choose another name" in capsys.readouterr().err
    assert Path("conf/experiment/vision/2nd.yaml").read_text() == text


@pytest.mark.parametrize("name", ["smoke", "../out", "", "a b", "/abs"])
def test_a_name_for_which_no_experiment_can_be_written_is_refused(name, tmp_path):
    assert main(["new", name]) == EXIT_FAILED
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_list_shows_every_group_with_its_default_and_refuses_what_is_none(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0].split(":")[0] for line in lines] == groups()
    assert "head (local): frozen, local, shared, soft" in lines
    assert main(["list", "haed"]) == EXIT_FAILED
    assert "did you mean 'head'?" in capsys.readouterr().err
