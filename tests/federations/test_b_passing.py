"""The paper's code as a mode: what is private goes from client to client, and a run says so."""

import json
import os
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedsa_lora.client import build
from fedsa_lora.client_app import client_fn
from fedsa_lora.config.compose import load, read_config
from fedsa_lora.errors import ConfigError
from fedsa_lora.federation import PASSED
from fedsa_lora.learning.training import predict
from fedsa_lora.report.account import what_left
from fedsa_lora.runs.reading import read_jsonl
from fedsa_lora.server_app import server_fn
from fedsa_lora.simulation import SIMULATION
from fedsa_lora.store import ClientState, DirectoryStore, PassedStore

BRIEF = ("evaluation.local_only=false", "evaluation.before=false")
PASSING = "federation.b_passing=true"


@pytest.fixture(scope="module")
def passing(run_smoke) -> Path:
    return run_smoke(*BRIEF, PASSING, "run.report=true")


@pytest.fixture(scope="module")
def plain(run_smoke) -> Path:
    return run_smoke(*BRIEF)


def fits(run: Path) -> list[dict]:
    """In the order in which the clients trained."""
    rows = [row for row in read_jsonl(run / "clients.jsonl") if row["phase"] == "fit"]
    return sorted(rows, key=lambda row: (row["round"], row["client"]))


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_a_client_starts_from_the_private_state_of_the_client_before_it(passing):
    rows = fits(passing)
    assert len(rows) == 12
    for before, row in pairwise(rows):
        assert row["private_before"] == before["private_after"]
    assert len({row["private_after"] for row in rows}) == 12
    assert summary(passing)["proof"]["chain_breaks"] == 8  # every hand-over but those of the first round


def test_without_it_a_client_starts_from_its_own(plain):
    last = {}
    for row in fits(plain):
        assert row["private_before"] == last.get(row["client"], row["private_before"])
        last[row["client"]] = row["private_after"]
    assert len(set(last.values())) == 4
    assert summary(plain)["proof"]["chain_breaks"] == 0


def test_both_begin_with_the_same_bits(passing, plain):
    first, other = fits(passing)[0], fits(plain)[0]
    assert first["private_after"] == other["private_after"]


def test_all_clients_are_evaluated_with_what_the_last_one_trained(passing):
    config = read_config(passing)
    last = DirectoryStore(config.store_dir, "3", config.experiment).load()
    common = DirectoryStore(passing, "checkpoints", config.name).load()
    bench = build.workbench(config)
    bench.model.write(common.tensors | last.tensors)
    recorded = {r["client"]: r for r in read_jsonl(passing / "clients.jsonl") if r["phase"] == "evaluate"}
    for client in "0123":
        test = config.task.load_client(client).test
        found = config.task.evaluate(predict(bench.model, config.task, test, config.train), test.labels)
        assert found["loss"] == pytest.approx(recorded[client]["loss"], abs=1e-6)


def test_it_is_told_in_the_title_the_summary_and_the_report(passing, plain):
    found = summary(passing)
    assert found["warning"] == PASSED
    assert found["title"].endswith(PASSED)
    assert (passing / "report.html").read_text().count(PASSED) >= 2
    assert not any("stayed" in line for line in what_left(found))
    assert f"Warning: {PASSED}" in " ".join(what_left(found))
    assert "Warning: 8 times a client did not continue from its own state." in what_left(found)
    assert summary(plain)["warning"] is None


@pytest.mark.parametrize("app", [server_fn, client_fn])
def test_outside_of_a_simulation_it_is_refused_by_server_and_client(app, tmp_path, monkeypatch):
    monkeypatch.delenv(SIMULATION, raising=False)
    words = shlex.join(["experiment=smoke", PASSING, f"run.dir={tmp_path / 'run'}"])
    context = Context(
        1, 0, {"partition-id": 0, "store": str(tmp_path / "run")}, RecordDict(), {"overrides": words}
    )
    with pytest.raises(ConfigError, match="in simulation only"):
        app(context)
    assert not (tmp_path / "run").exists()


def test_a_run_leaves_no_mark_of_a_simulation_behind(plain):
    assert SIMULATION not in os.environ


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["split=share_ab", "strategy=flora", "federation.ranks=[2,4]"], "expected ranks=null"),
        (["split=share_ab", "head=shared"], "expected split=share_a"),
        (["split=soft", "head=soft"], "expected split=share_a"),
    ],
)
def test_what_cannot_be_passed_on_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        load([PASSING, *words])


def test_memory_is_not_passed_on(tmp_path):
    (tmp_path / "clients").mkdir()
    one, two = (PassedStore(tmp_path / "clients", c, "e", 3, tmp_path / "passed") for c in "01")
    assert one.load() is None
    residual = np.ones(2, np.float32)
    one.save(ClientState(1, {"B": np.zeros(3, np.float32)}, {"residual": residual}))
    assert two.load().memory == {}
    two.save(ClientState(1, {"B": np.full(3, 7, np.float32)}))
    again = one.load(1)
    assert again.round == 1
    assert np.array_equal(again.memory["residual"], residual)
    assert np.array_equal(again.tensors["B"], np.full(3, 7, np.float32))
