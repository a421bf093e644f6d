"""Several clients on a node: one message for all of them, and a run of the same bits."""

from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.server.compat.grid_client_proxy import GridClientProxy
from remarks import failures_of
from test_methods import rows
from test_resume import assert_same_run

from fedsa_lora.bundle import pack, size_of, unpack
from fedsa_lora.client.client import FedSAClient
from fedsa_lora.config.compose import load
from fedsa_lora.deployment.node_config import Node, of_clients
from fedsa_lora.errors import ConfigError
from fedsa_lora.runs import inprocess
from fedsa_lora.runs.inprocess import InProcessGrid, run_in_process
from fedsa_lora.server.nodes import ClientGrid, ClientsOfNodes
from strategies.round.replies import UnreadableReply

WORDS = ("experiment=smoke", "federation.clients=4", "federation.rounds=2", "run.keep_generations=9")


def content(text: str) -> RecordDict:
    return RecordDict({"said": ConfigRecord({"text": text}), "arrays": ArrayRecord()})


def test_what_is_joined_comes_apart_as_it_was():
    parts = {0: content("zero"), 2: content("two"), 1: Error(7, "no such device")}
    whole = recorddict_from_proto(recorddict_to_proto(pack(parts, 3)))
    assert size_of(whole) == 3
    apart = unpack(whole, 3)
    assert apart.keys() == parts.keys()
    assert (apart[1].code, apart[1].reason) == (7, "no such device")
    for place in (0, 2):
        assert recorddict_to_proto(apart[place]) == recorddict_to_proto(parts[place])
    assert size_of(content("zero")) is None


@pytest.mark.parametrize(
    "key", ["3/said", "-1/said", "01/said", "٣/said", "9" * 5000 + "/x", "said", "/said", "x/said", "0"]
)
def test_what_is_of_no_client_of_the_node_is_refused(key):
    whole = pack({0: content("zero")}, 3)
    whole[key] = ConfigRecord()
    with pytest.raises(ValueError, match=r"belongs to no client of a node with 3|Exceeds the limit"):
        unpack(whole, 3)


CODED = ("codec=topk_int8", "downlink=topk_int8", "split=importance")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("each", "words"),
    [
        (2, CODED),
        (4, ()),
        pytest.param(2, (), marks=pytest.mark.slow),
        pytest.param(4, CODED, marks=pytest.mark.slow),
    ],
)
def test_a_run_has_the_same_bits_however_many_clients_a_node_has(run_smoke, each, words):
    plain = run_smoke(*WORDS[1:], *words)
    assert_same_run(run_smoke(*WORDS[1:], *words, f"federation.clients_per_node={each}"), plain)


def test_one_message_goes_to_a_node_for_all_of_its_clients(monkeypatch, tmp_path):
    sent = []

    class Counting(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            sent.extend(
                (m.metadata.dst_node_id, m.metadata.message_type, size_of(m.content)) for m in messages
            )
            return super().push_messages(messages)

    monkeypatch.setattr(inprocess, "InProcessGrid", Counting)
    words = ["federation.rounds=1", "federation.clients_per_node=2", "run.report=false"]
    run_in_process([*WORDS, *words, f"run.dir={tmp_path / 'run'}"])
    kinds = ("get_properties", "train", "evaluate")
    assert sent == [(node, kind, 2) for kind in kinds for node in (1, 2)]


def test_a_client_that_fails_costs_the_others_of_its_node_nothing(monkeypatch, tmp_path):
    fit = FedSAClient.fit

    def fails(self, parameters, config):
        if self.client == "1":
            raise OSError("no such device")
        return fit(self, parameters, config)

    monkeypatch.setattr(FedSAClient, "fit", fails)
    words = ["federation.rounds=1", "federation.clients_per_node=2", "run.report=false"]
    run = run_in_process([*WORDS, *words, f"run.dir={tmp_path / 'run'}"])
    (row,) = rows(run)
    assert row["fit_clients"] == 3
    (failure,) = failures_of(row)
    log = run / "clients" / "1" / "log.jsonl"
    assert failure.startswith(
        f"client 1: OSError: an unexpected error; the full text is in {log} (round 1, fit)"
    )
    assert "no such device" in log.read_text()


class Answering(InProcessGrid):
    """A node that answers each message with ``reply``, a content or an error."""

    def __init__(self, reply: RecordDict | Error | None) -> None:
        super().__init__(1, {})
        self.reply = reply

    def push_messages(self, messages):
        return super().push_messages(messages) if self.reply is not None else [""]

    def _serve(self, message: Message) -> Message:
        return Message(self.reply, reply_to=message)


def asked(reply: RecordDict | Error | None) -> tuple[ClientGrid, list[str]]:
    """Both clients of a node, asked."""
    grid = ClientGrid(Answering(reply), 2)
    messages = [Message(content(str(node)), node, "train") for node in grid.get_node_ids()]
    return grid, list(grid.push_messages(messages))


def test_what_befalls_a_node_befalls_each_of_its_clients():
    for reply, told in ((None, "its node cannot be reached"), (Error(3, "it crashed"), "it crashed")):
        grid, ids = asked(reply)
        for one in ids:
            (answer,) = grid.pull_messages([one])
            assert answer.error.reason == told
            assert answer.metadata.reply_to_message_id == one
            assert grid.pull_messages([one]) == [], "an answer is given once"


def test_an_answer_for_one_client_is_none_for_the_other():
    grid, ids = asked(pack({1: content("one")}, 2))
    (first,), (second,) = (grid.pull_messages([one]) for one in ids)
    assert first.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert first.error.reason == "its node did not answer for it"
    assert second.content["said"]["text"] == "one"


@pytest.mark.parametrize(
    "reply", [content("x"), RecordDict({"clients-of-node": ConfigRecord()}), pack({}, 10**15)]
)
def test_an_answer_that_is_no_bundle_is_unreadable_for_each_client(reply):
    grid, ids = asked(reply)
    for one in ids:
        with pytest.raises(UnreadableReply, match="it is not a bundle of the messages of 2 clients"):
            grid.pull_messages([one])


@pytest.mark.parametrize("record", [ArrayRecord(), ConfigRecord(), ConfigRecord({"code": "1", "reason": ""})])
def test_an_error_that_is_none_is_unreadable_for_each_client(record):
    whole = pack({1: content("one")}, 2)
    whole["0/error"] = record
    grid, ids = asked(whole)
    for one in ids:
        with pytest.raises(UnreadableReply, match="an error without code and reason"):
            grid.pull_messages([one])


def test_a_client_that_is_asked_again_gets_a_message_of_its_own():
    grid, (first, _) = asked(pack({0: content("zero"), 1: content("one")}, 2))
    grid.pull_messages([first])
    node = next(iter(grid.get_node_ids()))
    (again,) = grid.push_messages([Message(content("again"), node, "train")])
    (answer,) = grid.pull_messages([again])
    assert answer.content["said"]["text"] == "zero"


def test_a_client_is_named_by_its_node_and_its_place_there():
    manager = ClientsOfNodes(2)
    nodes = [GridClientProxy(node, Answering(None), 1) for node in (70, 80)]
    assert all(manager.register(node) for node in nodes)
    assert sorted(manager.all()) == ["70/0", "70/1", "80/0", "80/1"]
    assert [manager.all()[cid].node_id for cid in sorted(manager.all())] == [140, 141, 160, 161]
    manager.unregister(GridClientProxy(70, Answering(None), 1))
    assert sorted(manager.all()) == ["80/0", "80/1"]


def test_a_node_is_the_clients_that_its_config_names():
    assert [one["client-id"] for one in of_clients({"partition-id": 2}, 3)] == ["6", "7", "8"]
    named = of_clients({"client-id": "ward-a,ward-b", "store": "/s"}, 2)
    assert named == [{"client-id": name, "store": "/s"} for name in ("ward-a", "ward-b")]
    with pytest.raises(
        ConfigError, match=r"2 clients, a,b, .* 3 on each node: expected .*clients_per_node=2"
    ):
        of_clients({"client-id": "a,b"}, 3)


FAULTS = {
    "client-id: names a client twice: a,a": {"client-id": "a,a"},
    r"client id '\.\./b'": {"client-id": "a,../b"},
    "client id ''": {"client-id": "a,"},
    r"data\.path: holds the data of one client, but this node is 2": {
        "client-id": "a,b",
        "data.path": "rows.csv",
    },
}


@pytest.mark.parametrize("said", FAULTS)
def test_a_node_of_several_clients_is_checked_before_it_starts(tmp_path, said):
    (tmp_path / "rows.csv").write_text("text,label\nx,y\n")
    config = {"store": str(tmp_path), **FAULTS[said]}
    if "data.path" in config:
        config["data.path"] = str(tmp_path / "rows.csv")
    with pytest.raises(ConfigError, match=said):
        Node.deployed(config)


def test_a_node_of_several_clients_starts(tmp_path: Path):
    Node.deployed({"store": str(tmp_path), "client-id": "a,b"})
    with pytest.raises(
        ConfigError, match=r"names 2 clients: expected federation\.clients_per_node=2 of a run"
    ):
        Node.read({"store": str(tmp_path), "client-id": "a,b"})


def test_the_clients_of_a_run_fill_its_nodes():
    with pytest.raises(ConfigError, match="clients_per_node is 3: expected a divisor of clients, 4"):
        load([*WORDS, "federation.clients_per_node=3"])
    with pytest.raises(ConfigError, match="a registry binds one client to each node"):
        load([*WORDS, "federation.clients_per_node=2", "federation.registry=keys.toml"])
