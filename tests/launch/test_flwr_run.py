"""Real runs, followed from the command line: `flwr run`, with Ray actors that serve several clients each, and
processes of this machine."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from under_way import under_way

from fedsa_lora import cli
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.interrupted import last_whole_round
from fedsa_lora.server.build import skeleton
from fedsa_lora.store import DirectoryStore

OVERRIDES = [
    "experiment=smoke", "federation.clients=6", "federation.rounds=3", "strategy.fraction_fit=0.5",
    "run.keep_messages=true", "run.keep_generations=9",
]  # fmt: skip


def command_line(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fedsa_lora.cli", *arguments],
        env=environment, cwd=cwd, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def flwr_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flwr") / "run"
    ended = command_line("run", *OVERRIDES, "machine.engine=ray", f"run.dir={folder}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "report:" in ended.stdout
    assert "through Ray" in ended.stdout
    return folder


def states(run: Path) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """Every state of every client that is still kept, and those of the server under the name 'A', each
    with what is remembered beside it."""
    config = read_config(run)
    stores = {folder.name: build.store(config, folder.name) for folder in (run / "clients").iterdir()}
    stores["A"] = DirectoryStore(run, "checkpoints", config.name, 9)
    found = {(name, r): store.load(r) for name, store in sorted(stores.items()) for r in store.rounds()}
    return {
        key: state.tensors | {f"memory/{name}": array for name, array in state.memory.items()}
        for key, state in found.items()
    }


def lines(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@pytest.mark.case(13)
def test_values_of_b_and_head_are_in_no_serialised_message(flwr_run):
    private = [(k, t) for k, t in states(flwr_run).items() if k[0] != "A"]
    assert len(private) == 3 * 3, "three of six clients in each of three rounds"
    messages = list((flwr_run / "clients").glob("*/messages/*.bin"))
    assert {path.name.split("-")[1].split(".")[0] for path in messages} == {
        "get_properties",
        "train",
        "evaluate",
    }
    everything = b"|".join(path.read_bytes() for path in messages)
    for key, tensors in private:
        for name, array in tensors.items():
            assert "lora_A" not in name
            values = array.ravel()
            for start in range(0, len(values) - 3, 4):
                assert values[start : start + 4].tobytes() not in everything, (key, name)


def test_the_bytes_reported_are_those_of_the_serialised_messages_and_hold_a_alone(flwr_run):
    from fedsa_lora.learning.adapters import initial_state

    config = read_config(flwr_run)
    layout = skeleton(config).layout
    start = initial_state(layout, config.seed)
    reported = [row["bytes_up"] for row in lines(flwr_run, "clients.jsonl") if row["phase"] == "fit"]
    values = sum(spec.size for spec in layout if spec.role == "A")
    assert all(4 * values < size < 4 * values + 1500 for size in reported)
    kept = [path.stat().st_size for path in (flwr_run / "clients").glob("*/messages/*train.bin")]
    assert sorted(kept) == sorted(reported)
    moved = {n: a - start[n] for n, a in states(flwr_run)[("A", 1)].items() if n in start}
    assert sum(update.size for update in moved.values()) == values
    assert all(update.any() for update in moved.values())


def test_clients_that_outnumber_actors_keep_their_own_b(flwr_run):
    last: dict[str, str] = {}
    for row in lines(flwr_run, "clients.jsonl"):
        if row["phase"] == "fit":
            assert row["private_before"] == last.get(row["client"], row["private_before"])
            last[row["client"]] = row["private_after"]
    assert len(last) > 3, "different clients were sampled in different rounds"
    assert len(set(last.values())) == len(last), "no two clients have the same B"
    proof = json.loads((flwr_run / "summary.json").read_text())["proof"]
    assert (proof["chain_breaks"], proof["matches"], proof["distinct_b"]) == (0, 0, True)
    assert proof["messages"] == 6 + 3 * 3 + 3 * 6


def assert_same_bits(one: Path, two: Path) -> None:
    """Every state of the server and of the clients, what they remember, and every row but its times."""
    expected, found = states(one), states(two)
    assert expected.keys() == found.keys()
    for key, tensors in expected.items():
        assert tensors.keys() == found[key].keys()
        assert all(np.array_equal(array, found[key][name]) for name, array in tensors.items()), key
    timed = {"seconds", "bytes_up"}  # a header has the digits of seconds
    for first, second in zip(lines(one, "clients.jsonl"), lines(two, "clients.jsonl"), strict=True):
        assert first.keys() == second.keys()
        assert all(first[key] == second[key] for key in first.keys() - timed)


def test_one_process_without_ray_gives_the_same_bits(flwr_run, tmp_path):
    assert_same_bits(flwr_run, run_in_process([*OVERRIDES, f"run.dir={tmp_path / 'run'}"]))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inprocess", "ray"])
def test_so_it_does_when_splits_adapt_both_ways_are_coded_and_a_node_has_three_clients(tmp_path, engine):
    adaptive = ["split=importance", "codec=topk_int8", "downlink=int8", "strategy=fedadam"]
    words = [*OVERRIDES, *adaptive, "machine.cohort=3"]
    ways = ["federation.clients_per_node=3", f"machine.engine={engine}"]
    ended = command_line("run", *words, *ways, f"run.dir={tmp_path / 'one'}")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    here = run_in_process([*words, f"run.dir={tmp_path / 'two'}"])
    assert {len(row["split"]) for row in lines(here, "rounds.jsonl")} == {4, 2}
    assert any(name.startswith("memory/") for _, state in states(here).items() for name in state)
    assert_same_bits(tmp_path / "one", here)


def test_the_run_directory_is_complete(flwr_run):
    expected = {
        "config.yaml", "environment.json", "status.json", "partition.json", "summary.json", "report.html",
        "rounds.jsonl", "rounds.csv", "clients.jsonl", "clients.csv", "figures", "clients", "checkpoints",
        "adapters", "logs", "app",
    }  # fmt: skip
    assert expected <= {path.name for path in flwr_run.iterdir()}
    assert json.loads((flwr_run / "status.json").read_text())["state"] == "completed"
    assert len(list((flwr_run / "figures").glob("*.png"))) == 4
    assert {p.name for p in (flwr_run / "adapters").iterdir()} == set("012345")
    assert "token" not in (flwr_run / "environment.json").read_text()


@pytest.mark.slow
def test_a_run_that_fails_exits_non_zero_with_the_reason(tmp_path):
    """It fails while it trains, so data at a relative path were found by clients that work elsewhere."""
    rows = "".join(f"request number {i},{'yes' if i % 3 else 'no'}\n" for i in range(80))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    data = ["task=text", "task.dataset=rows.csv", "train.lr=1e30", "run.dir=run"]
    ended = command_line("run", "experiment=smoke", *data, cwd=tmp_path)
    assert ended.returncode == 1
    assert "the loss became" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "number", "code"),
    [
        ("inprocess", signal.SIGTERM, 143),
        ("inprocess", signal.SIGINT, 130),
        ("inprocess", signal.SIGHUP, 129),
        ("ray", signal.SIGTERM, 143),
    ],
)
def test_a_run_that_a_signal_ends_is_stopped_and_its_last_line_resumes_it(tmp_path, engine, number, code):
    run = tmp_path / "run"
    words = ["experiment=smoke", "federation.rounds=999", f"machine.engine={engine}", f"run.dir={run}"]
    with under_way(run, words) as process:
        process.send_signal(number)
        assert process.wait() == code
        last = process.stderr.read().strip().splitlines()[-1]
    done = last_whole_round(run)
    assert done >= 1
    assert last == f"stopped after round {done} of 999; resume with: fedsa-lora resume {run}"
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", f"stopped after round {done} of 999")
    assert 'state="stopped"} 1' in (run / "metrics.prom").read_text()
    assert "This run was stopped" in (run / "report.html").read_text()
    assert cli.main(["watch", str(run), "--once"]) == 143
    shorter = [f"federation.rounds={done + 1}", "evaluation.local_only=false"]
    run_in_process([*words, *shorter, "run.resume=true"])
    assert json.loads((run / "status.json").read_text())["state"] == "completed"
