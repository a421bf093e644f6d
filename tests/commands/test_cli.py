"""The command line: exit code 0 only for what was done; an error names the culprit, without a traceback."""

import json
import shlex
from pathlib import Path
from typing import Self

import pytest

from fedsa_lora.cli import main, parsed
from fedsa_lora.commands.screen import EXIT_FAILED, console
from fedsa_lora.config.changes import with_experiment
from fedsa_lora.config.compose import load
from fedsa_lora.doctor import machine as doctor
from fedsa_lora.errors import RunError
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.stopping import INTERRUPTED

TINY = ["experiment=smoke", "federation.clients=2"]


@pytest.fixture(autouse=True)
def _wide_screen_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "_width", 200)


def fails(capsys, *arguments: str) -> str:
    """What a failing command says on stderr."""
    assert main(arguments) == EXIT_FAILED
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return captured.err


def begun_run(folder, *overrides: str):
    """A run directory whose server ended before its first round."""
    config = load([*TINY, *overrides, f"run.dir={folder}"])
    return config, RunDirectory.create(config, command="test")


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path, capsys):
    assert main(["run", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for fact in (
        "Quickstart",
        "base 22,713,216, A 36,864, B 36,864, head 2,695",
        "A shared, B local, head frozen",
        "73,728 / 36,864 parameters",
        "10 with 62 to 98 train examples",
        "12, each 5 steps x batch 8",
        "processes on CPU, without Ray",
        "runs/quickstart-",
    ):
        assert fact in said, fact
    assert list(tmp_path.iterdir()) == []


def test_another_experiment_and_overrides_are_taken(tmp_path, capsys):
    words = [*TINY, "split=share_b", "train.steps=null", "train.epochs=3", "title='[red]mine[/'"]
    assert main(["run", "--dry-run", *words, "run.dir=here"]) == 0
    said = capsys.readouterr().out
    assert "A local, B shared" in said
    assert "each 3 epochs" in said
    assert "[red]mine[/" in said
    assert f"{tmp_path}/here" in said


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("run a=1 --dry-run b=2 c=3", {"dry_run": True}),
        ("run --dry-run a=1 b=2 c=3", {"dry_run": True}),
        ("run a=1 b=2 c=3 --dry-run", {"dry_run": True}),
        ("resume DIR --allow-changes a=1 --allow-changed-data b=2 c=3", {"allow_changes": True}),
        ("resume DIR a=1 --allow-changes b=2 --allow-changed-data c=3", {"allow_changed_data": True}),
        ("resume --allow-changes DIR a=1 b=2 c=3", {"allow_changes": True}),
        ("advise a=1 --rounds 2 b=2 c=3", {"rounds": 2}),
        ("advise --rounds 2 a=1 b=2 c=3", {"rounds": 2}),
    ],
)
def test_flags_may_stand_between_overrides_of_which_none_is_lost_or_moved(words, flags):
    options, beyond = parsed(words.split())
    assert (options.overrides, beyond) == (["a=1", "b=2", "c=3"], [])
    assert flags.items() <= vars(options).items()
    assert vars(options).get("run_dir", Path("DIR")) == Path("DIR")


@pytest.mark.parametrize("words", ["a=1 --epochs", "a=1 --epochs 3 b=2", "--dry-run a=1 --epochs=3 b=2"])
def test_a_flag_that_there_is_not_is_refused_wherever_it_stands(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", *words.split()])
    assert stop.value.code == 2
    assert "unrecognized arguments: --epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("run --dryrun", "--dryrun (did you mean '--dry-run'?)"),
        ("report runs/x --too=y", "--too (did you mean '--to'?)"),
        ("compare methods --resumee=3 split=ffa", "--resumee (did you mean '--resume'?)"),
    ],
)
def test_a_flag_that_is_misspelt_comes_with_that_of_its_command(words, hint, capsys):
    with pytest.raises(SystemExit):
        main(words.split())
    said = capsys.readouterr().err
    assert f"usage: fedsa-lora {words.split()[0]} " in said
    assert said.rstrip().endswith(hint)


@pytest.mark.parametrize(
    "words", [["task=banking77"], ["regime=dirichlet_01"], ["task=text", "task.dataset=d.csv"]]
)
def test_data_or_a_regime_of_ones_own_come_without_the_quickstarts_artificial_setting(words, tmp_path):
    (tmp_path / "d.csv").write_text("text,label\n" + "hello,a\ngood bye,b\n" * 200)
    config = load(with_experiment(words))
    assert (config.head.policy, config.federation.label_meaning) == ("local", "common")
    assert "Quickstart" not in config.title
    quickstart = load(["experiment=quickstart", "split=share_ab", "model=tiny_bert"])
    assert load(with_experiment(["split=share_ab", "model=tiny_bert"])).resolved == quickstart.resolved


def test_a_plan_has_a_plain_title_and_a_table_of_what_the_command_changes(capsys):
    assert main(["run", "--dry-run", "task=banking77", "split=share_b", "seed=1"]) == 0
    said = capsys.readouterr().out
    assert said.split("┌")[0].strip() == "banking77, 10 clients"
    assert [line.strip("│ ").split() for line in said.splitlines()[-3:-1]] == [
        ["task", "│", "banking77"], ["split", "│", "share_b"],
    ]  # fmt: skip


def test_what_the_partition_remarks_is_shown(capsys):
    assert main(["run", "--dry-run", *TINY, "federation.train_examples=[9000,9000]"]) == 0
    assert "fewer train examples than drawn" in capsys.readouterr().out


def test_classes_rows_and_what_was_left_out_are_shown(tmp_path, capsys):
    rows = "".join(f"example number {i};{'it' if i % 3 else 'IT'}\n" for i in range(60))
    (tmp_path / "rows.csv").write_text(f"text;label\n{rows}")
    words = ["task=text", "task.dataset=rows.csv", "federation.train_examples=[5,5]"]
    assert main(["run", "--dry-run", *TINY, *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for fact in (
        "classes │ 2: IT, it",
        "rows │ 60 train (left out: ",
        "beyond train_examples or test_examples)",
        "rows.csv: its fields are separated by ';'",
        "classes that differ in upper and lower case only: 'IT' and 'it'",
    ):
        assert fact in said, fact


def test_every_fault_of_a_run_is_on_stderr(tmp_path, capsys):
    said = fails(capsys, "run", "train.lr=-1", "spilt=share_a", "model.path=./nowhere")
    assert said.startswith("ConfigError: the configuration has 3 faults:\n")
    for fault in ("train.lr: -1", "did you mean 'split'?", "no model at './nowhere'"):
        assert fault in said
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_a_data_error(capsys):
    said = fails(capsys, "run", "--dry-run", *TINY, "task=text", "task.dataset=rows.csv")
    assert said.startswith("DataError: no data at 'rows.csv'")


def test_a_used_run_directory_is_refused_before_anything_starts(tmp_path, capsys):
    begun_run(tmp_path / "used")
    before = sorted(path.name for path in (tmp_path / "used").iterdir())
    said = fails(capsys, "run", *TINY, f"run.dir={tmp_path}/used")
    assert said.startswith("RunError: ")
    assert "already holds a run" in said
    assert sorted(path.name for path in (tmp_path / "used").iterdir()) == before


@pytest.mark.parametrize("command", [["evaluate", "nowhere"], ["export", "nowhere", "--client", "0"]])
def test_a_directory_that_is_no_run_is_told(capsys, command):
    assert "nowhere is not a run directory: it has no config.yaml" in fails(capsys, *command)


@pytest.mark.parametrize("command", [["evaluate"], ["export", "--client", "0"]])
def test_a_run_that_ended_before_its_first_round_has_nothing_to_show(tmp_path, capsys, command):
    begun_run(tmp_path / "run")
    said = fails(capsys, command[0], str(tmp_path / "run"), *command[1:])
    assert "has no checkpoint: the run ended before its first round did" in said


@pytest.mark.parametrize(
    ("client", "said"), [("99", "no client '99' in "), ("../0", "client id '../0'"), ("", "client id ''")]
)
def test_an_unknown_client_is_told_and_nothing_is_written(smoke_run, tmp_path, capsys, client, said):
    found = fails(capsys, "export", str(smoke_run), "--client", client, "--to", str(tmp_path / "to"))
    assert said in found
    assert list(tmp_path.iterdir()) == []


def test_a_client_of_a_finished_run_is_exported_where_it_is_told(smoke_run, tmp_path, capsys):
    assert main(["export", str(smoke_run), "--client", "1", "--to", str(tmp_path / "to")]) == 0
    assert "written: " in capsys.readouterr().out
    card = (tmp_path / "to" / "README.md").read_text()
    assert "client 1" in card
    assert json.loads((tmp_path / "to" / "adapter_config.json").read_text())["r"] == 8


def test_every_client_of_a_finished_run_is_evaluated_as_the_run_did(smoke_run, capsys):
    assert main(["evaluate", str(smoke_run)]) == 0
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in (smoke_run / "clients.jsonl").read_text().splitlines()]
    recorded = {row["client"]: f"{row['accuracy']:.4f}" for row in rows if row["phase"] == "evaluate"}
    assert len(recorded) == 4
    for client, accuracy in recorded.items():
        cells = [line.replace("│", " ").split() for line in said.splitlines()]
        assert [row[2:] for row in cells if row[:1] == [client]] == [[accuracy, accuracy]]


def test_the_doctor_returns_a_non_zero_code_for_a_failed_check(capsys, monkeypatch):
    well = [doctor.Check("disk", True, "much [free]"), doctor.Check("memory", True, "much")]
    monkeypatch.setattr(doctor, "examine", lambda: well)
    assert main(["doctor"]) == 0
    assert "much [free]" in capsys.readouterr().out
    ill = doctor.Check("GPU", False, "broken", "mend it")
    monkeypatch.setattr(doctor, "examine", lambda: [*well, ill])
    assert main(["doctor"]) == EXIT_FAILED
    said = capsys.readouterr().out
    assert "broken" in said
    assert "mend it" in said


def test_an_interrupted_command_says_so(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupt)
    assert main(["doctor"]) == INTERRUPTED == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["fly"], ["export", "run"], ["run", "--wet"]])
def test_a_command_that_is_none_is_told_by_argparse(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: fedsa-lora" in capsys.readouterr().err


def test_a_misspelt_command_is_answered_with_the_nearest_one(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["rnu", "experiment=smoke"])
    assert caught.value.code == 2
    assert "no command 'rnu' (did you mean 'run'?); expected run, watch, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "one for all clients"),
        (["clusters=updates"], "2, after round 2, regrouped every round"),
        (["clusters.groups=null", "clusters.distance=0.9", "clusters.every=0"], "as many as differ by 0.9"),
    ],
)
def test_the_plan_says_how_clients_are_grouped(capsys, words, said):
    assert main(["run", "--dry-run", *TINY, *words]) == 0
    assert said in capsys.readouterr().out


def test_the_plan_shows_no_role_without_parameters(capsys):
    assert main(["run", "--dry-run", *TINY, "lora=none", "split=full", "head=shared"]) == 0
    said = capsys.readouterr().out
    assert "head shared, base shared" in said
    assert "A local" not in said


class NeverBegins:
    """A Flower that is still starting when it is stopped, or fails."""

    ends: BaseException = SystemExit(143)

    def __init__(self, *arguments: object) -> None:
        pass

    def __enter__(self) -> Self:
        raise self.ends

    def __exit__(self, *error: object) -> None:
        pass


def test_a_run_that_is_stopped_while_flower_starts_says_how_to_start_it_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedsa_lora.launch.federate.FlowerRun", NeverBegins)
    words = ["run", *TINY, "machine.engine=ray", "title='two words'", f"run.dir={tmp_path / 'run'}"]
    assert main(words) == 143
    last = capsys.readouterr().err.strip().splitlines()[-1]
    reason, _, command = last.partition("; start it again with: ")
    assert reason == "stopped before its first round had ended"
    assert shlex.split(command) == ["fedsa-lora", *words]
    for once in ([], ["--once"]):
        assert main(["watch", str(tmp_path / "run"), *once]) == 143
        said = capsys.readouterr().out
        assert reason in said
        assert "starting" not in said
    assert main(shlex.split(command)[1:]) == 143, "its directory is free to be used"


def test_a_run_that_fails_while_flower_starts_is_failed_for_those_who_watch_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedsa_lora.launch.federate.FlowerRun", NeverBegins)
    monkeypatch.setattr(NeverBegins, "ends", RunError("flwr run did not answer"))
    assert main(["run", *TINY, "machine.engine=ray", f"run.dir={tmp_path / 'run'}"]) == 1
    assert main(["watch", str(tmp_path / "run"), "--once"]) == 1
    assert "flwr run did not answer" in capsys.readouterr().out
