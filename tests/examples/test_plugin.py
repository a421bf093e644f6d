"""The plug-in package of examples/: split, codec, strategy, task, model and measure of a user's own."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from example_lines import lines_written
from my_methods.codec import Sign
from my_methods.split import HeadLater
from my_methods.task import Digits, Network

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.cli import main
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import WireError
from fedsa_lora.exchange.stages import upload
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl, read_run
from fedsa_lora.server.build import skeleton

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "plugin" / "my_methods"
PAGE = (ROOT / "docs" / "extending.md").read_text()
SIZES = {"split.py": 8, "codec.py": 27, "strategy.py": 12, "task.py": 31}


def words_of_the_page() -> list[str]:
    """The overrides of the command that docs/extending.md has for the package."""
    command = re.search(r"^FEDSA_LORA_PLUGINS=my_methods fedsa-lora run ((?:.*\\\n)*.*)", PAGE, re.MULTILINE)
    assert command is not None
    return [a or b for a, b in re.findall(r"'([^']*)'|([^\s\\]+)", command[1])]


@pytest.fixture(scope="module", autouse=True)
def plugged_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSA_LORA_PLUGINS", "my_methods")
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plugin") / "run"
    brief = ("federation.clients=3", "federation.rounds=2", "federation.train_examples=[40,40]")
    return run_in_process([*words_of_the_page(), *brief, f"run.dir={folder}"])


def exporter(run: Path) -> Exporter:
    config = read_config(run)
    return Exporter(config, RunDirectory(run, config), skeleton(config))


def model_of(run: Path, client: str) -> AdapterModel:
    model = build.model(read_config(run))
    model.write(exporter(run).tensors(client))
    return model


@pytest.mark.parametrize(("name", "most"), SIZES.items())
def test_each_part_is_short(name, most):
    assert lines_written(PACKAGE / name) <= most


def test_all_parts_take_part_in_a_run(run):
    config = read_config(run)
    assert [type(part) for part in (config.task, config.split, config.codec)] == [Digits, HeadLater, Sign]
    assert config.strategy.name == "RootWeighted"
    assert config.title == "Digits, 3 clients"
    first, second = read_jsonl(run / "rounds.jsonl")
    layout = skeleton(config).layout
    size = {role: layout.select(s.name for s in layout if s.role == role).size for role in ("A", "head")}
    assert (first["shared"], second["shared"]) == (size["A"], size["A"] + size["head"])
    sent = [row["bytes_up"] for row in read_jsonl(run / "clients.jsonl") if row["phase"] == "fit"]
    assert max(sent) < size["A"], "a bit each, and a header"
    assert 0 < second["top_two_worst"] <= second["top_two"] <= 1


def test_report_and_summary_carry_its_measure(run):
    assert read_run(run).primary.name == "top_two"
    page = (run / "report.html").read_text()
    assert "<h2>Top two</h2>" in page
    assert "accuracy" not in page.lower()


@pytest.mark.parametrize("merge", [False, True])
def test_the_card_of_an_export_loads_what_the_client_had(run, tmp_path, monkeypatch, merge):
    words = ["export", str(run), "--client", "1", "--to", str(tmp_path / "1"), *["--merge"] * merge]
    assert main(words) == 0
    card = (tmp_path / "1" / "README.md").read_text()
    assert "AutoModel" not in card
    assert "the task `my_methods.task.Digits` of the run" in card
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    assert "model = ...  # a my_methods.task.Network" in code
    monkeypatch.chdir(tmp_path / "1")
    loaded = {"Network": Network}
    exec(code.replace("...  #", "Network(24)  #", 1), loaded)
    pixels = torch.rand(5, 64)
    with torch.no_grad():
        expected = model_of(run, "1").module(pixels)
        assert torch.allclose(loaded["model"].eval()(pixels), expected, atol=1e-6)
        assert not torch.allclose(model_of(run, "0").module(pixels), expected, atol=1e-3)


def test_adapters_are_in_the_run_over_one_backbone(run):
    assert (run / "backbone" / "model.safetensors").is_file()
    assert {path.name for path in (run / "adapters").iterdir()} == {"0", "1", "2"}
    assert "../../backbone/model.safetensors" in (run / "adapters" / "0" / "README.md").read_text()


def test_the_commands_know_it(run, tmp_path, capsys):
    assert main(["run", "--dry-run", *words_of_the_page(), f"run.dir={tmp_path / 'other'}"]) == 0
    assert "RootWeighted" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--newcomer-steps", "2"]) == 0
    assert "top two" in capsys.readouterr().out


def test_signs_lose_nothing_for_good():
    update = np.random.default_rng(0).normal(size=21).astype(np.float32)
    stages = upload(Sign(), None)
    payload, owed = stages.apply(update, None, np.random.default_rng(1))
    sent = Sign().decode(payload, 21).dense()
    assert (np.sign(sent) == np.sign(update)).all()
    np.testing.assert_allclose(sent + owed, update, rtol=1e-6)
    assert (len(payload), len(Sign().encode(update[:0], None))) == (4 + 3, 4)
    with pytest.raises(WireError, match="expected 7 bytes, got 6"):
        Sign().decode(payload[:-1], 21)


def test_the_code_on_the_page_is_that_of_the_examples():
    examples = [path.read_text() for path in (ROOT / "examples").rglob("*.py")]
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert any(block in text for text in examples), block


def test_every_file_that_the_page_names_is_there():
    linked = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert {path for path in linked if not (ROOT / "docs" / path).exists()} == set()
    assert len(linked) > 8
