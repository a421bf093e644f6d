"""The store of a deployed node's client: private to its user, salted, and bounded whoever starts the runs."""

import json
import os
import stat

import numpy as np
import pytest
from flwr.common import EvaluateIns, FitIns, ndarrays_to_parameters
from flwr.compat.common.recorddict_compat import (
    evaluateins_to_recorddict,
    fitins_to_recorddict,
    recorddict_to_evaluateres,
    recorddict_to_fitres,
)
from test_client import Desk
from test_outside import SMOKE, asked, refusal

from fedsa_lora.deployment.node_config import Node
from fedsa_lora.deployment.node_store import COUNTED, EVALUATED, SECRET, NodeStore, check_room
from fedsa_lora.errors import ConfigError, StoreError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import digest
from fedsa_lora.group import at_least, ranges
from fedsa_lora.settings import RunConfig
from fedsa_lora.store import ClientState, DirectoryStore


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "allowed").mkdir()
    return tmp_path


def fit_message(desk, client, round_, **changes):
    arrays, config = desk.ask(client, round_, run="abcd", **changes)
    return fitins_to_recorddict(FitIns(ndarrays_to_parameters(arrays), config), keep_input=True)


def evaluate_message(desk, client, round_, **changes):
    arrays, config = desk.ask(client, round_, run="abcd", **changes)
    return evaluateins_to_recorddict(EvaluateIns(ndarrays_to_parameters(arrays), config), keep_input=True)


def header_of(reply):
    if any("fitres" in name for name in reply.content):
        metrics = recorddict_to_fitres(reply.content, keep_input=True).metrics
    else:
        metrics = recorddict_to_evaluateres(reply.content).metrics
    return wire.read_header(metrics, wire.UploadHeader)


def node_store(folder, client="7", evaluations=10) -> NodeStore:
    return NodeStore(folder, client, "e", 3, evaluations)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(folder) -> dict[str, int]:
    everything = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in everything}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o002])
def test_everything_in_the_folder_of_a_nodes_client_is_its_users_alone(machine, umask, mask):
    umask(mask)
    desk, node = Desk(machine / "other"), {"keep-messages": True}
    words = [*SMOKE, "run.keep_messages=true"]
    for content in (fit_message(desk, "0", 1), evaluate_message(desk, "0", 1)):
        assert asked(machine, words, node=node, content=content).has_content()
    (folder,) = (machine / "kept").glob("*/0")
    found = modes(folder)
    names = {
        "round-000001.safetensors",
        "predictions.safetensors",
        "log.jsonl",
        "egress.jsonl",
        "metrics.prom",
    }
    assert names | {"messages", SECRET, EVALUATED} <= found.keys()
    for name, mode in found.items():
        assert mode == (0o700 if name in (".", "messages") else 0o600), name
    above = [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder.parent.parent)]
    assert above == [0o700, 0o700], "who could rename the folder could put another in its place"
    assert os.umask(mask) == mask, "the process's own umask is as it was"


def test_what_an_older_version_left_open_is_closed_at_the_next_message(machine, umask):
    umask(0o022)
    desk = Desk(machine / "other")
    asked(machine, SMOKE, content=fit_message(desk, "0", 1))
    (folder,) = (machine / "kept").glob("*/0")
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    asked(machine, SMOKE)
    assert set(modes(folder).values()) == {0o700, 0o600}


def test_a_private_digest_is_salted_and_the_same_from_round_to_round(machine):
    desk, headers = Desk(machine / "other"), {}
    for client in ("0", "1"):
        for round_ in (1, 2):
            content = fit_message(desk, client, round_)
            reply = asked(machine, SMOKE, node={"client-id": client}, content=content)
            headers[client, round_] = header_of(reply)
            assert not headers[client, round_].error
        assert headers[client, 2].private_before == headers[client, 1].private_after
    plain = desk.fit("0", 1, run="abcd")[2]
    assert len({h.private_before for h in (headers["0", 1], headers["1", 1], plain)}) == 3, "one common start"
    assert {len(h.private_after) for h in headers.values()} == {len(plain.private_after)} == {16}
    secrets = {path.read_bytes() for path in (machine / "kept").rglob(SECRET)}
    assert {len(secret) for secret in secrets} == {32}
    assert len(secrets) == 2


def test_the_secret_outlives_the_process_and_is_made_once(tmp_path):
    first = node_store(tmp_path).salted("0123456789abcdef")
    assert node_store(tmp_path).salted("0123456789abcdef") == first
    assert node_store(tmp_path).salted("0123456789abcdee") != first
    assert node_store(tmp_path, client="8").salted("0123456789abcdef") != first
    assert stat.S_IMODE((tmp_path / "7" / SECRET).stat().st_mode) == 0o600
    (tmp_path / "7" / SECRET).write_bytes(b"cut")
    with pytest.raises(StoreError, match="secret does not hold 32 bytes: it was truncated"):
        node_store(tmp_path).salted("0123456789abcdef")


def test_a_guess_of_b_cannot_be_tested_without_the_secret(tmp_path):
    tensors = {"x.lora_B.weight": np.zeros((2, 2), "float32")}
    guess = digest(tensors)
    seen = node_store(tmp_path).salted(guess)
    assert seen != guess
    assert seen != node_store(tmp_path / "elsewhere").salted(guess)
    assert DirectoryStore(tmp_path, "7", "e").salted(guess) == guess, "in a simulation runs can be compared"


def test_a_round_is_evaluated_as_often_as_the_node_allows(machine):
    desk, node = Desk(machine / "other"), {"evaluations": 2}
    asked(machine, SMOKE, node=node, content=fit_message(desk, "0", 1))

    def evaluate(round_, **changes):
        return header_of(
            asked(machine, SMOKE, node=node, content=evaluate_message(desk, "0", round_, **changes))
        )

    assert [evaluate(1).error, evaluate(1).error] == ["", ""]
    assert "the round was evaluated as often as this node allows" in evaluate(1).error
    assert not evaluate(2).error
    for resumed in range(4):  # whoever writes the message says how often
        assert "as often as this node allows" in evaluate(1, resumed=f"{resumed:04}").error


@pytest.mark.parametrize("left", [b"", b"[]", b"{", b"\xff"])
def test_a_count_that_was_cut_off_begins_anew(tmp_path, left):
    store = node_store(tmp_path, evaluations=1)
    store.count_evaluation(3)
    (tmp_path / "7" / EVALUATED).write_bytes(left)
    store.count_evaluation(3)
    with pytest.raises(StoreError, match="evaluated 1 times, as often as this node allows"):
        store.count_evaluation(3)


def test_a_node_whose_store_is_full_answers_nothing_and_writes_nothing_more(machine):
    desk = Desk(machine / "other")
    asked(machine, SMOKE, content=fit_message(desk, "0", 1))
    held = sum(path.stat().st_size for path in (machine / "kept").rglob("*") if path.is_file())
    before = modes(machine / "kept")
    with pytest.raises(StoreError, match="delete the folders of finished runs"):
        check_room(machine / "kept", held / 1e9)
    for words in (SMOKE, [*SMOKE, "run.dir=/runs/another"]):
        reply = asked(machine, words, node={"store-limit": held / 1e9})
        assert "its store has reached the limit of its node config" in refusal(reply)
    assert modes(machine / "kept") == before
    assert asked(machine, SMOKE, node={"store-limit": (held + 9) / 1e9}).has_content()


def test_the_room_of_a_store_is_counted_over_all_its_runs(tmp_path):
    for run in ("a", "b"):
        node_store(tmp_path / run).save(ClientState(1, {"B": np.zeros(1000, "float32")}))
    check_room(tmp_path, 10_000 / 1e9)
    with pytest.raises(StoreError, match=r"holds 0\.00 GB"):
        check_room(tmp_path, 8_000 / 1e9)
    check_room(tmp_path / "absent", 1e-9)


def test_messages_are_kept_only_where_the_node_says_so(machine):
    words = [*SMOKE, "run.keep_messages=true"]
    assert "this node keeps no messages (run.keep_messages)" in refusal(asked(machine, words))
    assert not (machine / "kept").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"store-limit": 0}, "store-limit: 0 is not a number of GB"),
        ({"store-limit": "20GB"}, "store-limit: '20GB' is not a number of GB"),
        ({"store-limit": float("nan")}, "store-limit: nan is not a number"),
        ({"evaluations": 0}, "evaluations: 0 is not a number of answers"),
        ({"evaluations": True}, "evaluations: True is not a number"),
        ({"keep-messages": "yes"}, "keep-messages: 'yes' is neither true nor false"),
        ({"store-limits": 1}, "did you mean 'store-limit'"),
    ],
)
def test_a_limit_that_is_none_is_a_fault(config, said):
    for read in (Node.read, Node.deployed):
        with pytest.raises(ConfigError) as caught:
            read({"client-id": "7", **config})
        assert said in str(caught.value)


def test_how_many_generations_a_run_asks_for_has_a_bound():
    assert ranges(RunConfig)["run.keep_generations"] == at_least(1, 100)


def test_evaluations_are_counted_for_the_newest_rounds(tmp_path):
    store = node_store(tmp_path)
    store.count_evaluation(4)
    assert json.loads((tmp_path / "7" / EVALUATED).read_text()) == {"4": 1}
    for round_ in range(5, 5 + COUNTED):
        store.count_evaluation(round_)
    with pytest.raises(StoreError, match="round 3 is evaluated too late: round 1004 was evaluated since"):
        store.count_evaluation(3)
