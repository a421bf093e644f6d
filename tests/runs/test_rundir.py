"""A run directory keeps every row, and its status is how the run really ended."""

import csv
import io
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.config.compose import load, read_config, to_yaml
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.environment import environment
from fedsa_lora.runs.place import refuse_used
from fedsa_lora.runs.reading import read_json, read_jsonl, read_run
from fedsa_lora.runs.spreadsheet import as_csv

ROWS = st.dictionaries(
    st.text(min_size=1, max_size=5),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    max_size=4,
)
LAYOUT = Layout((TensorSpec("x.lora_A.weight", (2, 3), "A"), TensorSpec("scale", (), "base")))


def create(folder, *overrides: str) -> RunDirectory:
    config = load(["experiment=smoke", *overrides, f"run.dir={folder}"])
    return RunDirectory.create(config, command="fedsa-lora run experiment=smoke")


def test_a_new_run_directory_says_what_runs_where_and_with_whose_data(tmp_path):
    directory = create(tmp_path / "a" / "run")
    path = directory.path
    names = ["config.yaml", "data.json", "environment.json", "partition.json", "status.json"]
    assert sorted(os.listdir(path)) == names
    assert read_config(path) == directory.config
    assert (path / "config.yaml").read_text() == to_yaml(directory.config)
    record = read_run(path)
    assert record.status["state"] == "running"
    assert record.status["ended"] is None
    assert record.environment["command"] == "fedsa-lora run experiment=smoke"
    shares = directory.config.task.describe().clients
    assert {name: share["train"] for name, share in record.partition["clients"].items()} == {
        name: share.train for name, share in shares.items()
    }


def test_a_used_directory_is_refused_and_left_alone(tmp_path):
    create(tmp_path / "run")
    (tmp_path / "run" / "status.json").write_text("as it was")
    with pytest.raises(RunError, match=f"^{tmp_path}/run already holds a run"):
        create(tmp_path / "run")
    assert (tmp_path / "run" / "status.json").read_text() == "as it was"


def test_a_directory_with_other_files_or_none_will_do_and_a_file_will_not(tmp_path):
    (tmp_path / "logs").mkdir()
    refuse_used(tmp_path)
    refuse_used(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file"):
        refuse_used(tmp_path / "file")


@settings(max_examples=30, deadline=None)
@given(st.lists(ROWS, max_size=5), st.lists(ROWS, max_size=5))
def test_rows_come_back_equal_and_in_order(tmp_path_factory, rounds, clients):
    directory = RunDirectory(tmp_path_factory.mktemp("run"), load(["experiment=smoke"]))
    for row in rounds:
        directory.round(row)
    for row in clients:
        directory.client(row)
    for name, rows in (("rounds", rounds), ("clients", clients)):
        path = directory.path / f"{name}.jsonl"
        assert (read_jsonl(path) if path.exists() else []) == rows


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    directory = RunDirectory(tmp_path, load(["experiment=smoke"]))
    for round_ in range(3):
        directory.round({"round": round_})
        assert len((tmp_path / "rounds.jsonl").read_bytes().splitlines()) == round_ + 1


def test_rows_that_cannot_be_written_are_told_with_their_file(tmp_path):
    directory = RunDirectory(tmp_path, load(["experiment=smoke"]))
    (tmp_path / "rounds.jsonl").mkdir()
    with pytest.raises(RunError, match=r"rounds\.jsonl cannot be written: .*check space"):
        directory.round({"round": 1})


def test_a_run_that_ends_well_is_completed(tmp_path):
    directory = create(tmp_path / "run")
    with directory.recording():
        assert read_json(directory.path / "status.json")["state"] == "running"
    status = read_json(directory.path / "status.json")
    assert (status["state"], status["reason"]) == ("completed", None)
    assert status["started"] <= status["ended"]


@pytest.mark.parametrize("error", [RunError("client 3 failed"), ValueError("a bug"), SystemExit(1)])
def test_whatever_ends_a_run_is_its_reason_and_goes_on(tmp_path, error):
    directory = create(tmp_path / "run")
    with pytest.raises(type(error)) as caught, directory.recording():
        raise error
    assert caught.value is error
    status = read_json(directory.path / "status.json")
    assert status["state"] == "failed"
    assert status["reason"] == f"{type(error).__name__}: {error}"
    assert status["ended"]


def test_the_last_checkpoint_is_the_newest_to_the_bit_with_what_the_server_remembers(tmp_path):
    directory = RunDirectory(tmp_path, load(["experiment=smoke", "run.keep_generations=2"]))
    with pytest.raises(RunError, match="has no checkpoint: the run ended before its first round did"):
        directory.last_checkpoint()
    rng = np.random.default_rng(0)
    for round_ in (1, 2, 3):
        vector = rng.normal(size=LAYOUT.size).astype(np.float32)
        memory = {"held": vector + 1, "plan/next": np.array([round_ + 1.0])}
        directory.checkpoint(round_, LAYOUT, vector, memory)
        found = directory.last_checkpoint()
        assert found.round == round_
        LAYOUT.check(found.tensors)
        assert LAYOUT.pack(found.tensors).tobytes() == vector.tobytes()
        assert found.memory.keys() == memory.keys()
        for name, array in memory.items():
            np.testing.assert_array_equal(found.memory[name], array, strict=True)
    files = sorted(os.listdir(tmp_path / "checkpoints"))
    assert files == ["round-000002.safetensors", "round-000003.safetensors"]


def test_a_summary_is_written_with_the_rows_as_tables(tmp_path):
    directory = RunDirectory(tmp_path, load(["experiment=smoke"]))
    remark = {"client": "3", "kind": "lost", "reason": 'a, "b"\nc'}
    rounds = [{"round": 1, "loss": 0.5}, {"round": 2, "remarks": [remark], "loss": None}]
    clients = [{"client": "0", "accuracy": 0.25}]
    for row in rounds:
        directory.round(row)
    for row in clients:
        directory.client(row)
    directory.write_summary({"rounds": 2})
    assert read_json(tmp_path / "summary.json") == {"rounds": 2}
    with open(tmp_path / "rounds.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert table == [
        {"round": "1", "loss": "0.5", "remarks": ""},
        {"round": "2", "loss": "", "remarks": str(rounds[1]["remarks"])},
    ]
    assert (tmp_path / "clients.csv").read_text() == "client,accuracy\n0,0.25\n"


FORMULAS = ["=cmd|' /C calc'!A0", "@SUM(1)", "+1", "-1", "\t=1", "\r=1", "\n=1"]


@pytest.mark.parametrize("text", [*FORMULAS, "\ud800", 'a "quoted", text', "a=b", "a\rb", "\u202eb", "é"])
def test_a_text_in_a_table_is_a_text_in_a_spreadsheet_and_numbers_stay_numbers(text):
    table = as_csv([{"a": text, text: -1.5}, {"a": None}])
    assert table.encode().decode() == table
    head, row, missing = csv.reader(io.StringIO(table, newline=""))
    shown = "'" * (text in FORMULAS) + "".join(c if c.isprintable() else " " for c in text)
    assert head == ["a", shown]
    assert row == [shown, "-1.5"]
    assert missing == ["", ""]


def test_the_environment_names_the_versions_that_ran():
    found = environment()
    assert {"fedsa_lora", "flwr", "torch", "transformers", "peft", "python", "platform", "device"} <= set(
        found
    )
    assert found["numpy"] == np.__version__
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("signal", [KeyboardInterrupt(), SystemExit(143), SystemExit(0)])
def test_what_a_signal_ends_is_stopped_and_says_how_far_it_came(tmp_path, signal):
    directory = create(tmp_path / "run")
    with pytest.raises(type(signal)), directory.recording():
        raise signal
    status = read_json(directory.path / "status.json")
    assert (status["state"], status["reason"]) == ("stopped", "stopped before its first round had ended")
    assert 'run_state{run="run",state="stopped"} 1' in (directory.path / "metrics.prom").read_text()
    assert 'state="failed"} 0' in (directory.path / "metrics.prom").read_text()
