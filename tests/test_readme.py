"""The README: its commands run, and its figures are those of the record."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from fedsa_lora.cli import main, parsed
from fedsa_lora.config.compose import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:python)?\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith("fedsa-lora ")
]
OF_A_RUN = ("resume", "evaluate", "export")
RECORDED = ROOT / "docs/results/personalisation/table.md"
METHODS = {  # in the README, in the record
    "soft: B and head half averaged": "soft",
    "share B": "share B",
    "FedSA: share A": "FedSA (share A)",
    "each client alone": "local only",
    "share A and B, local head": "share A and B, own head",
    "FedIT: share A, B and head": "FedIT (share A and B)",
}
COLUMNS = (
    "meanings-snips", "meanings-clinc_banking", "few-snips",
    "natural-amazon", "natural-clinc150", "dirichlet_01-banking77",
)  # fmt: skip


@pytest.fixture
def _tickets(tmp_path, monkeypatch) -> None:
    """A working directory with the file that the README reads."""
    monkeypatch.chdir(tmp_path)
    rows = [f"request {i} about subject {i % 4},queue{i % 4}" for i in range(400)]
    Path("tickets.csv").write_text("\n".join(["body,queue", *rows]))


def here(words: list[str]) -> list[str]:
    """A command of the README on the file of the working directory."""
    return [word.replace("/data/tickets.csv", "tickets.csv") for word in words]


def test_the_readme_has_commands_of_each_kind():
    assert {command[0] for command in COMMANDS} >= {"run", "advise", *OF_A_RUN}
    for target in re.findall(r"make ((?:run|test|site|[a-z]+-[a-z]+)\b[a-z-]*)", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


@pytest.mark.usefixtures("_tickets")
@pytest.mark.parametrize("words", [c for c in COMMANDS if c[0] in ("run", "advise")], ids=" ".join)
def test_a_command_that_trains_is_sound(words, capsys):
    if words[0] == "advise" or "model=roberta_base" in words:  # many runs; a model of the hub
        load(parsed(here(words))[0].overrides)
    else:
        assert main([*dict.fromkeys([*here(words), "--dry-run"])]) == 0, capsys.readouterr().err


def test_commands_on_a_run_do_what_they_say(tmp_path, monkeypatch, smoke_run):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(smoke_run, run := Path("runs/NAME"))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "running"}))  # as if killed at its end
    for words in COMMANDS:
        if words[0] in OF_A_RUN:
            assert main(words) == 0, words


def test_the_app_of_the_readme_can_be_made():
    from digits_app.app import Network, data
    from peft import LoraConfig

    names = {"Network": Network, "data": data, "LoraConfig": LoraConfig}
    exec(next(block for block in BLOCKS if "client_app" in block), names)
    assert type(names["client"]).__name__ == "ClientApp"
    assert type(names["server"]).__name__ == "ServerApp"


def rows(page: str) -> dict[str, list[str]]:
    """The cells of the first table with a column of Amazon reviews, by method, without asterisks."""
    begin = re.search(r"^\| method \|.*[Aa]mazon.*$", page, re.MULTILINE).start()
    table = page[begin:].partition("\n\n")[0].replace("*", "")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in cells}


def test_the_table_of_the_readme_is_the_recorded_one():
    shown, recorded = rows(README), rows(RECORDED.read_text(encoding="utf-8"))
    order = [recorded["method"].index(column) for column in COLUMNS]
    for name, ours in METHODS.items():
        *cells, mean, most, harmed = recorded[ours]
        expected = [cells[i].removeprefix("0") for i in order]
        assert shown[name] == [cell.replace("± 0", "± ") for cell in expected] + [f"{mean}, {most}", harmed]
    assert set(shown) == {*METHODS, "method", "---"}


@pytest.mark.slow
def test_the_commands_reach_the_figures_beside_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = dict(re.findall(r"│ (federated, personalised|alone \(local-only\)) +│ ([\d.]+)%", README))
    few = next(line for line in README.splitlines() if "regime=few" in line)
    for words, federated, alone in (
        (["run"], shown["federated, personalised"], shown["alone (local-only)"]),
        (shlex.split(few, comments=True)[1:], *re.findall(r"([\d.]+)%", few)),
    ):
        assert main([*words, "run.dir=run"]) == 0
        summary = json.loads(Path("run/summary.json").read_text())
        assert 100 * summary["personalised"]["mean"] == pytest.approx(
            float(federated), abs=2.5
        )  # other processors round otherwise
        assert 100 * summary["local_only"]["mean"] == pytest.approx(float(alone), abs=2.5)
        shutil.rmtree("run")
