"""The Flower app of examples/: the model and the data are a user's own, the run is one of ours."""

import io
import json
import re
import shutil
import tomllib
import zipfile
from pathlib import Path

import cloudpickle
import pytest
import torch
from digits_app import app
from example_lines import lines_written
from flwr.app import Context, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from played import deploy, play

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.cli import main
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.flower import _Federation
from fedsa_lora.launch.flower_run import FlowerRun, Outcome
from fedsa_lora.launch.size import Simulation
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.reading import read_jsonl, read_run
from fedsa_lora.server.build import skeleton
from fedsa_lora.tasks import named_functions

PROJECT = Path(__file__).parents[2] / "examples" / "flower_app"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("app") / "run"
    said = {"run.dir": str(folder), "num-server-rounds": 2, "train.lr": 0.02, "train.steps": 3, "own": "word"}
    with pytest.MonkeyPatch.context() as patch:
        return play(app.client, app.server, 4, said, patch)


@pytest.fixture
def elsewhere(monkeypatch):
    """A process that was given no function, such as that of a command."""
    monkeypatch.setattr(named_functions, "_GIVEN", {})


def test_the_app_is_short():
    assert lines_written(PROJECT / "digits_app" / "app.py") <= 35


def test_flower_accepts_the_project():
    load_and_validate(PROJECT / "pyproject.toml")


def test_the_run_config_of_flower_has_settings(run):
    config = read_config(run)
    assert (config.federation.rounds, config.train.lr, config.train.steps) == (2, 0.02, 3)
    assert config.title == "digits_app.app:Network, 4 clients"
    assert (config.lora.r, config.lora.target_modules) == (4, ["body.0", "body.2"])


def test_the_run_has_the_record_of_any_other(run):
    found = read_run(run)
    assert found.status["state"] == "completed"
    assert [row["round"] for row in found.rounds] == [1, 2]
    shares = found.partition["clients"]
    assert {name: share["test"] for name, share in shares.items()} == {"0": 90, "1": 89, "2": 89, "3": 89}
    assert sum(sum(share["classes"]) for share in shares.values()) == 1797 - 90 - 3 * 89
    assert {row["client"] for row in read_jsonl(run / "clients.jsonl")} == set("0123")
    proof = found.summary["proof"]
    assert (proof["matches"], proof["distinct_b"], proof["messages"]) == (0, True, 4 + 2 * 4 + 2 * 4)
    page = (run / "report.html").read_text()
    assert "digits_app.app:Network" in page


def test_b_and_the_head_stay_and_a_is_common(run):
    config = read_config(run)
    states = {client: build.store(config, client).load().tensors for client in "0123"}
    roles = {spec.name: spec.role for spec in build.model(config).layout}
    assert {roles[name] for name in states["0"]} == {"B", "head"}
    for name, value in states["0"].items():
        assert all((value != states[client][name]).any() for client in "123"), name


@pytest.mark.parametrize("client", "03")
def test_stock_peft_on_a_model_of_the_users_function_has_the_outputs_of_the_client(run, client, monkeypatch):
    folder = run / "adapters" / client
    card = (folder / "README.md").read_text()
    monkeypatch.chdir(folder)
    loaded: dict[str, torch.nn.Module] = {}
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], loaded)
    config = read_config(run)
    expected = build.model(config)
    expected.write(Exporter(config, RunDirectory(run, config), skeleton(config)).tensors(client))
    pixels = torch.stack([pixels for pixels, _ in app.data(int(client), 4)[1]])
    with torch.no_grad():
        assert torch.allclose(loaded["model"].eval()(pixels), expected.module(pixels), atol=1e-5)
    assert not torch.equal(app.Network().classifier.weight, loaded["model"].classifier.weight)


def test_commands_know_the_run_where_its_package_is_allowed(run, tmp_path, monkeypatch, elsewhere, capsys):
    assert main(["watch", str(run), "--once"]) == 0
    export = ["export", str(run), "--client", "1", "--to", str(tmp_path / "1")]
    assert main(export) != 0
    assert "FEDSA_LORA_PLUGINS" in capsys.readouterr().err
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "digits_app")
    assert main(["evaluate", str(run), "--union"]) == 0
    assert main(export) == 0
    card = (tmp_path / "1" / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path / "1")
    loaded: dict[str, torch.nn.Module] = {}
    exec(code, loaded)
    rows = [
        row for row in read_jsonl(run / "clients.jsonl") if (row["client"], row["phase"]) == ("1", "evaluate")
    ]
    _, test = app.data(1, 4)
    pixels, labels = (torch.stack(part) for part in zip(*test, strict=True))
    right = (loaded["model"].eval()(pixels).argmax(1) == labels).float().mean()
    assert rows[-1]["accuracy"] == pytest.approx(right.item())


@pytest.mark.parametrize("nodes", [2, 5])
def test_with_another_number_of_supernodes_the_app_ends_and_the_number_to_set_is_named(
    nodes, tmp_path, monkeypatch
):
    said = {"run.dir": str(tmp_path / "run")}
    with pytest.raises(RunError, match=f"{nodes} of 4 clients .* num-supernodes=4"):
        play(app.client, app.server, nodes, said, monkeypatch)


def of_hospital(name: str, clients: int):
    """Data that only the node of that name has."""
    return app.data(int(name.removeprefix("hospital-")), clients)


def test_on_nodes_each_has_its_own_data_and_store_and_the_server_none(tmp_path):
    given = {**app.app, "data": of_hospital, "clients": 2}
    said = {
        "federation": "deployment", "federation.superlink": "127.0.0.1:9", "federation.insecure": True,
        "partition": "own", "federation.rounds": 1, "train.steps": 2, "run.report": False,
        "evaluation.local_only": False, "run.dir": str(tmp_path / "run"),
    }  # fmt: skip
    run = deploy(app.client_app(**given), app.server_app(**given), 2, said, tmp_path / "nodes")
    found = read_run(run)
    assert (found.status["state"], found.partition["clients"]) == ("completed", {})
    fits = {row["client"]: row["examples"] for row in found.clients if row["phase"] == "fit"}
    assert fits == {"hospital-1": 719, "hospital-2": 719}
    assert not (run / "clients").exists()
    assert {path.name for path in tmp_path.glob("nodes/*/*")} >= set(fits)


def test_apps_that_are_sent_to_other_processes_bring_their_functions(monkeypatch):
    given = {"model_function": app.Network, "data_function": app.data}
    sent = cloudpickle.dumps(_Federation("functions", given, app.app["lora"], "share_a", 4, (), (), ()))
    monkeypatch.setattr(named_functions, "_GIVEN", {})
    received = cloudpickle.loads(sent)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    assert "task=functions" in received._configured(context).run_config["overrides"]
    assert named_functions.function_of("digits_app.app:Network") is app.Network


def test_a_function_without_a_name_is_refused_at_once():
    with pytest.raises(ConfigError, match="at the top of a module"):
        app.client_app(**{**app.app, "model": lambda: app.Network()})


def flown(folder: Path, nodes: int) -> Outcome:
    """The end of a real `flwr run` of the project, whose run directory is ``run`` in the folder."""
    project = shutil.copytree(PROJECT, folder / "project", ignore=shutil.ignore_patterns("__pycache__"))
    file = project / "pyproject.toml"
    assert "num-server-rounds" in tomllib.loads(file.read_text())["tool"]["flwr"]["app"]["config"]
    file.write_text(
        f"{file.read_text()}\n[tool.flwr.app.config.run]\ndir = {json.dumps(str(folder / 'run'))}\n"
    )
    flower = FlowerRun(project, "", Simulation(nodes, cpus=2), folder / "logs")
    flower.run_config = {}
    with flower as running:
        return running.follow()


@pytest.mark.slow
def test_flwr_run_runs_the_project(tmp_path):
    outcome = flown(tmp_path, 4)
    assert outcome.state == "completed", outcome.details
    found = read_run(tmp_path / "run")
    assert (found.status["state"], len(found.rounds)) == ("completed", 3)
    assert found.summary["proof"]["matches"] == 0
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_flwr_run_with_too_few_supernodes_ends(tmp_path):
    outcome = flown(tmp_path, 2)
    assert outcome.state == "failed"
    assert "flwr run --federation-config num-supernodes=4" in outcome.details


@pytest.mark.parametrize("project", ["flower_app", "trainer_app"])
def test_records_of_runs_are_not_sent_to_nodes_as_part_of_the_app(tmp_path, project):
    shutil.copytree(PROJECT.parent / project, app_folder := tmp_path / "app")
    (app_folder / "runs" / "1" / "clients").mkdir(parents=True)
    (app_folder / "runs" / "1" / "config.yaml").write_text("seed: 0")
    (app_folder / "runs" / "1" / "clients" / "log.jsonl").write_text("{}")
    packed = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app_folder))).namelist()
    assert any(name.endswith("app.py") for name in packed)
    assert not [name for name in packed if name.startswith("runs/")]
