"""Federations of real processes on loopback: nodes and SuperLinks come, die, come back, and are refused."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from flwr.proto.control_pb2 import ListNodesRequest
from processes import WAIT_SECONDS, finish, fits, rows, said, wait_for
from remarks import failures_of
from safetensors.numpy import load_file
from test_methods import checkpoint

from fedsa_lora.config.compose import read_config
from fedsa_lora.deployment.certificates import make_certificates
from fedsa_lora.deployment.loopback import Loopback
from fedsa_lora.launch.connection import Connection
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.tasks.shipped import shipped_folder

pytestmark = pytest.mark.faults
SMOKE = ["experiment=smoke", "federation.clients=2", "run.keep_generations=9"]
QUIET = "run.report=false"


@pytest.fixture
def plain_federation(tmp_path: Path) -> Iterator[Loopback]:
    """Without TLS, and open to every node."""
    with Loopback(tmp_path / "logs", secure=False) as federation:
        yield federation


def alive(pid: str) -> bool:
    """Whether a process runs; one that has ended may lie unburied where it has no parent."""
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [found := psutil.Process(process.pid), *found.children(recursive=True)]


def halt(process: subprocess.Popen[bytes]) -> None:
    """Have a node and what it started stand still, as a machine that sleeps."""
    for part in tree(process):
        part.suspend()


def wake(process: subprocess.Popen[bytes]) -> None:
    for part in tree(process):
        part.resume()


def start_again(federation: Loopback, name: str) -> None:
    """Start a killed node until it is let in, as a service manager does: for twice its heartbeat's interval
    the SuperLink takes the one that was killed for alive, and refuses another with its key."""
    before = said(federation, f"node-{name}").count("SuperNode ID")
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        node = federation.node(name)
        while node.poll() is None:
            if said(federation, f"node-{name}").count("SuperNode ID") > before:
                return
            time.sleep(0.2)
    raise AssertionError(said(federation, f"node-{name}"))


@pytest.mark.case(21)
def test_a_node_and_the_superlink_that_were_killed_go_on_to_the_same_bits(federation, tmp_path):
    superlink = federation.superlink()
    for name in ("0", "1"):
        federation.register(name)
    killed = federation.node("0")
    federation.node("1")
    run_dir = tmp_path / "run"
    finish(federation, "run", *SMOKE, *federation.words, "federation.rounds=2", f"run.dir={run_dir}")
    assert not (run_dir / "clients").exists(), "what is private lies where the server is"
    federation.kill(killed)
    federation.kill(superlink)
    federation.superlink()
    start_again(federation, "0")
    finish(federation, "resume", str(run_dir), "federation.rounds=4", "--allow-changes")

    plain = run_in_process([*SMOKE, "federation.rounds=4", f"run.dir={tmp_path / 'plain'}"])
    ours, theirs = fits(run_dir), fits(plain)
    assert ours.keys() == theirs.keys()
    for client, round_ in ours:
        assert ours[client, round_]["loss"] == theirs[client, round_]["loss"], (client, round_)
        state = f"{client}/round-{round_:06d}.safetensors"
        kept, expected = (
            load_file(federation.store(client) / "run" / state),
            load_file(plain / "clients" / state),
        )
        assert kept.keys() == expected.keys()
        assert all(kept[name].tobytes() == expected[name].tobytes() for name in kept), (client, round_)
        assert ours[client, round_]["private_after"] != theirs[client, round_]["private_after"], "not salted"
    proof = json.loads((run_dir / "summary.json").read_text())["proof"]
    assert (proof["chain_breaks"], proof["distinct_b"]) == (0, None)
    assert ours["0", 3]["private_before"] == ours["0", 2]["private_after"]
    for round_ in range(1, 5):
        name = f"checkpoints/round-{round_:06d}.safetensors"
        shared, expected = load_file(run_dir / name), load_file(plain / name)
        assert shared.keys() == expected.keys()
        assert all(shared[name].tobytes() == expected[name].tobytes() for name in shared), round_


def test_nodes_of_two_clients_give_the_bits_of_one_client_to_a_node(plain_federation, tmp_path):
    federation, words = plain_federation, ["federation.clients=4", "federation.rounds=2"]
    federation.superlink()
    for name, clients in (("left", "0,1"), ("right", "2,3")):
        federation.node(name, says=clients)
    run_dir = tmp_path / "run"
    asked = [*SMOKE, *federation.words, *words, "federation.clients_per_node=2"]
    finish(federation, "run", *asked, f"run.dir={run_dir}")
    plain = run_in_process([*SMOKE, *words, f"run.dir={tmp_path / 'plain'}"])
    for name, clients in (("left", "01"), ("right", "23")):
        for client in clients:
            state = f"{client}/round-000002.safetensors"
            kept, expected = (
                load_file(federation.store(name) / "run" / state),
                load_file(plain / "clients" / state),
            )
            assert kept.keys() == expected.keys()
            assert all(kept[key].tobytes() == expected[key].tobytes() for key in kept), client
    shared, expected = (load_file(run / "checkpoints/round-000002.safetensors") for run in (run_dir, plain))
    assert all(shared[key].tobytes() == expected[key].tobytes() for key in expected)


OWN_CONFIGS = {
    "experiment/ward/base.yaml": """# @package _global_
defaults: [/experiment/smoke, override /lora: wide, override /federation: ward]
name: ward
""",
    "experiment/ward/first.yaml": """# @package _global_
defaults: [/experiment/ward/base]
train: {lr: 0.02}
""",
    "lora/wide.yaml": "defaults: [default]\nr: 3\n",
    "federation/ward.yaml": "defaults: [deployment]\nmin_clients: 1.0\n",
}


def test_nodes_run_the_config_files_of_whoever_submits_and_resumes_from_any_folder(
    plain_federation, tmp_path
):
    federation, run_dir, elsewhere = plain_federation, tmp_path / "run", tmp_path / "elsewhere"
    for name, text in OWN_CONFIGS.items():
        file = tmp_path / "user" / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    elsewhere.mkdir()
    federation.superlink()
    for name in ("0", "1"):
        federation.node(name)
    connection = [word for word in federation.words if word != "federation=deployment"]
    words = ["experiment=ward/first", *connection, "federation.clients=2", "federation.rounds=1"]
    finish(federation, "run", *words, f"run.dir={run_dir}", folder=tmp_path / "user")
    more = ["federation.rounds=2", "--allow-changes"]
    finish(federation, "resume", str(run_dir), *more, folder=elsewhere)
    config = read_config(run_dir)
    assert (config.lora.r, config.train.lr, config.federation.min_clients) == (3, 0.02, 1.0)
    assert [row["fit_clients"] for row in rows(run_dir)] == [2, 2]
    page = (run_dir / "report.html").read_text()
    assert "In the experiment" in page
    assert all((federation.store(name) / "run" / name).is_dir() for name in "01")


def test_split_learning_over_nodes_gives_the_bits_of_one_process(plain_federation, tmp_path):
    federation, words = plain_federation, ["federation.clients=2", "federation.rounds=2", "train.steps=3"]
    federation.superlink()
    for name in ("0", "1"):
        federation.node(name)
    run_dir = tmp_path / "run"
    split = ["experiment=split/tiny", *words, "cut.micro_batches=2", "federation.test_examples=6", QUIET]
    finish(federation, "run", *split, *federation.words, f"run.dir={run_dir}")
    plain = run_in_process([*split, f"run.dir={tmp_path / 'plain'}"])
    for ours, theirs in zip(rows(run_dir), rows(plain), strict=True):
        assert ours["step_losses"] == theirs["step_losses"]
        assert ours["perplexity"] == theirs["perplexity"]
    for client in ("0", "1"):
        state = f"{client}/round-000002.safetensors"
        kept, expected = load_file(federation.store(client) / "run" / state), plain / "clients" / state
        assert same(kept, load_file(expected)), client
    shared, expected = (load_file(run / "checkpoints/round-000002.safetensors") for run in (run_dir, plain))
    assert same(shared, expected)


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_one_that_joins_late_gets_a_and_starts_with_its_own_b_and_one_that_leaves_does_not_block(
    plain_federation, tmp_path
):
    federation = plain_federation
    table = pd.read_parquet(shipped_folder("snips") / "train.parquet")
    classes = sorted(table["label"].unique())
    parts = {name: table.iloc[i::100].reset_index(drop=True) for i, name in enumerate(("a", "b", "late"))}
    parts["a"].to_csv(tmp_path / "a.csv", index=False)
    parts["b"].to_json(tmp_path / "b.jsonl", orient="records", lines=True)
    (tmp_path / "late").mkdir()
    parts["late"].to_parquet(tmp_path / "late" / "train.parquet")
    run_dir = tmp_path / "run"
    federation.superlink()
    leaver = federation.node("a", f'data.path="{tmp_path / "a.csv"}"')
    federation.node("b", f'data.path="{tmp_path / "b.jsonl"}"')
    run = federation.submit(
        "run", *SMOKE, *federation.words, "task=text", "partition=own",
        f"task.class_names={json.dumps(classes)}", "federation.rounds=8",
        "federation.min_results=0.3", "federation.round_timeout=20",
        "federation.train_examples=null", "evaluation.local_only=false", f"run.dir={run_dir}",
    )  # fmt: skip
    wait_for(lambda: (run_dir / "rounds.jsonl").exists(), run)
    federation.node("late", f'data.path="{tmp_path / "late"}"')
    wait_for(lambda: any(client == "late" for client, _ in fits(run_dir)), run)
    federation.kill(leaver)
    assert run.wait(WAIT_SECONDS) == 0, said(federation, "submit")

    found = fits(run_dir)
    first = min(round_ for client, round_ in found if client == "late")
    assert first > 1
    assert found["late", first]["private_before"] != found["a", 1]["private_before"], "the start is salted"
    assert found["late", 8]["private_after"] != found["b", 8]["private_after"]
    assert ("b", 8) in found
    assert ("a", 8) not in found
    assert json.loads((run_dir / "partition.json").read_text())["clients"] == {}
    assert [row["round"] for row in rows(run_dir)] == list(range(1, 9))


@pytest.mark.case(3)
@pytest.mark.case(4)
def test_a_straggler_costs_a_deadline_and_where_nobody_answers_the_run_ends_with_an_error(
    plain_federation, tmp_path
):
    federation, run_dir, deadline = plain_federation, tmp_path / "run", 20
    federation.superlink()
    nodes = [federation.node(name) for name in ("0", "1")]
    run = federation.submit(
        "run", *SMOKE, *federation.words, "federation.rounds=999", "federation.min_results=0.5",
        f"federation.round_timeout={deadline}", "federation.max_skipped=2", "federation.retries=0",
        "evaluation.every=0", "evaluation.before=false", "evaluation.local_only=false", f"run.dir={run_dir}",
    )  # fmt: skip

    def rounds() -> list[dict]:
        return rows(run_dir)

    wait_for(rounds, run)
    halt(nodes[1])
    wait_for(lambda: any(row["remarks"] for row in rounds()), run)
    wake(nodes[1])
    missed = next(row for row in rounds() if row["remarks"])
    assert failures_of(missed) == [f"client 1: late: no answer within {deadline} s"]
    assert (missed["fit_clients"], missed["skipped"]) == (1, False)
    assert missed["fit_seconds"] <= 1.1 * deadline
    wait_for(lambda: rounds()[-1]["round"] > missed["round"] and rounds()[-1]["fit_clients"] == 2, run)
    for node in nodes:
        halt(node)
    assert run.wait(WAIT_SECONDS) != 0
    assert "2 rounds in a row had too few results" in said(federation, "submit")
    done = [row for row in rounds() if not row["skipped"]]
    before, last = (checkpoint(run_dir, done[-1]["round"] + skipped).tensors for skipped in (0, 1))
    assert last.keys() == before.keys()
    assert all(last[name].tobytes() == before[name].tobytes() for name in before)


@pytest.mark.case(30)
def test_a_node_without_a_registered_key_or_with_another_authority_is_refused(tmp_path):
    with Loopback(tmp_path / "logs") as federation:
        federation.superlink()
        federation.register("known")
        make_certificates(federation.keys, nodes=["stranger"])  # a key of which the SuperLink was not told
        other = tmp_path / "other"
        make_certificates(other)
        elsewhere = Connection(federation.connection.address, other / "ca.crt")
        plain = Connection(federation.connection.address, insecure=True)
        once = ("--max-retries", "0")
        refused = {
            "keyless": federation.node("keyless", "", *once),
            "stranger": federation.node("stranger", "", *once),
            "misled": federation.node("misled", "", *once, connection=elsewhere),
            "plain": federation.node("plain", "", *once, connection=plain),
        }
        for name, process in refused.items():
            assert process.wait(WAIT_SECONDS) != 0, name
            assert "could not establish a connection to the SuperLink" in said(federation, f"node-{name}")
        assert "CERTIFICATE_VERIFY_FAILED" in said(federation, "node-misled")
        client = federation.connection.client()
        assert "online" not in {node.status for node in client.ListNodes(ListNodesRequest()).nodes_info}
        admitted = federation.node("known")
        wait_for(
            lambda: "online" in {n.status for n in client.ListNodes(ListNodesRequest()).nodes_info},
            admitted,
        )
        client.close()


def test_nothing_outlives_a_federation_whose_own_process_was_killed(tmp_path):
    script = """
import sys, time
from pathlib import Path
from fedsa_lora.deployment.loopback import Loopback
with Loopback(Path(sys.argv[1]), secure=False) as federation:
    superlink = federation.superlink()
    node = federation.node("0")
    print(superlink.pid, node.pid, federation.private, flush=True)
    time.sleep(900)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    superlink, node, private = process.stdout.readline().split()
    assert alive(superlink)
    assert alive(node)
    process.kill()
    process.wait()
    deadline = time.monotonic() + WAIT_SECONDS
    while Path(private).exists():  # the last thing that goes
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not alive(superlink)
    assert not alive(node)
