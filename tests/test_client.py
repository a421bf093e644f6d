"""FedSAClient by itself: several clients on one resident model, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from fedsa_lora import assemble
from fedsa_lora.client import FedSAClient, cross_entropy, majority_accuracy
from fedsa_lora.config import load
from fedsa_lora.exchange import wire
from fedsa_lora.store import ClientState
from fedsa_lora.tasks.task import Examples


class Desk:
    """A workbench with its clients, and the messages that a server would send them."""

    def __init__(self, folder, *overrides: str) -> None:
        self.config = load(["experiment=smoke", f"run.dir={folder}", *overrides])
        self.bench = assemble.workbench(self.config)
        self.start = self.bench.shared.pack({n: self.bench.initial[n] for n in self.bench.shared.names})

    def store(self, client: str):
        return assemble.store(self.config, client)

    def client(self, name: str) -> FedSAClient:
        return FedSAClient(name, self.bench, self.store(name))

    def ask(self, round_: int, vector=None, **changes):
        vector = self.start if vector is None else vector
        header = wire.BroadcastHeader(round_, self.bench.shared.digest, wire.vector_digest(vector))
        return [vector], dict(wire.write_header(replace(header, **changes)))

    def fit(self, name: str, round_: int, **changes):
        arrays, count, metrics = self.client(name).fit(*self.ask(round_, **changes))
        return arrays[0], count, wire.read_header(metrics, wire.UploadHeader)


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path / "run")


def test_clients_served_in_turn_end_as_if_each_had_a_process_of_its_own(tmp_path):
    shared_process = Desk(tmp_path / "one")
    for round_ in (1, 2):
        for name in "0123":
            shared_process.fit(name, round_)
    for name in "13":
        own = Desk(tmp_path / f"own{name}")
        for round_ in (1, 2):
            own.fit(name, round_)
        alone, among = own.store(name).load().tensors, shared_process.store(name).load().tensors
        assert all(np.array_equal(alone[n], among[n]) for n in alone)


def test_the_order_of_the_clients_does_not_matter(tmp_path):
    forward, backward = Desk(tmp_path / "f"), Desk(tmp_path / "b")
    updates = {name: forward.fit(name, 1)[0] for name in "0123"}
    assert all(np.array_equal(backward.fit(name, 1)[0], updates[name]) for name in "3210")


def test_an_upload_is_the_difference_from_what_was_broadcast(desk):
    update, count, header = desk.fit("0", 1)
    standing = desk.bench.model.read()
    expected = desk.bench.shared.pack({n: standing[n] for n in desk.bench.shared.names}) - desk.start
    assert np.array_equal(update, expected)
    assert update.any()
    assert count == header.examples == len(desk.config.task.load_client("0").train)
    assert header.digest == wire.vector_digest(update)


def test_evaluating_changes_neither_state_nor_answer(desk):
    desk.fit("0", 1)
    before = desk.store("0").load()
    answers = [desk.client("0").evaluate(*desk.ask(1)) for _ in range(2)]
    desk.client("1").evaluate(*desk.ask(1))
    answers.append(desk.client("0").evaluate(*desk.ask(1)))
    assert answers[0] == answers[1] == answers[2]
    after = desk.store("0").load()
    assert before.round == after.round
    assert all(np.array_equal(before.tensors[n], after.tensors[n]) for n in before.tensors)


def test_a_client_uses_its_own_b(desk):
    """With another's B in its store a client answers otherwise: the store decides, not what is in memory."""
    desk.fit("0", 1)
    own = desk.client("0").evaluate(*desk.ask(1))[0]
    other = {n: a + np.float32(0.5) for n, a in desk.store("0").load().tensors.items()}
    desk.store("0").save(ClientState(1, other))
    assert desk.client("0").evaluate(*desk.ask(1))[0] != own


def test_a_later_generation_is_not_used_for_an_earlier_round(desk):
    desk.fit("0", 1)
    first = desk.fit("0", 2)
    desk.fit("0", 3)
    again = desk.fit("0", 2)
    assert np.array_equal(first[0], again[0])
    assert desk.store("0").rounds() == [1, 2]


FAULTS = {
    "another layout": ({"layout": "0" * 16}, "both sides must run the same model, lora and split"),
    "a digest that does not fit": ({"digest": "0" * 32}, "altered or cut off"),
}


@pytest.mark.parametrize(("changes", "said"), FAULTS.values(), ids=FAULTS)
def test_a_broadcast_that_does_not_fit_is_refused_and_nothing_is_stored(desk, changes, said):
    update, count, header = desk.fit("0", 1, **changes)
    assert said in header.error
    assert (update.size, count) == (0, 0)
    assert desk.store("0").load() is None


def test_a_broadcast_that_is_too_long_or_too_short_is_refused(desk):
    for vector in (desk.start[:-1], np.append(desk.start, np.float32(0))):
        assert "expected float32" in desk.fit("0", 1, vector=vector)[2].error
    assert desk.store("0").load() is None


def test_a_truncated_state_stops_the_client_and_is_named(desk):
    desk.fit("0", 1)
    path = desk.store("0").folder / "round-000001.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    _, _, header = desk.fit("0", 2)
    assert "StoreError" in header.error
    assert "round-000001.safetensors" in header.error
    assert not (desk.store("0").folder / "round-000002.safetensors").exists()


def test_a_full_disk_is_an_error_and_the_round_before_stays(desk, monkeypatch):
    desk.fit("0", 1)
    before = desk.store("0").load()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedsa_lora.files.os.fsync", full)
    assert "No space left on device" in desk.fit("0", 2)[2].error
    monkeypatch.undo()
    after = desk.store("0").load()
    assert after.round == before.round == 1
    assert [p.name for p in desk.store("0").folder.iterdir()] == ["round-000001.safetensors"]


def test_the_global_model_is_what_a_newcomer_gets(tmp_path):
    everything = Desk(tmp_path / "ab", "split=share_ab", "head=shared")
    everything.fit("0", 1)
    report = wire.read_header(
        everything.client("0").evaluate(*everything.ask(1))[2], wire.UploadHeader
    ).report
    assert report["global_accuracy"] == report["accuracy"]
    partly = Desk(tmp_path / "a", "split=share_a", "head=shared", "train.lr=0.5")
    partly.fit("0", 1)
    newcomer = wire.read_header(partly.client("3").evaluate(*partly.ask(1))[2], wire.UploadHeader).report
    assert newcomer["global_accuracy"] == newcomer["accuracy"], "client 3 has trained nothing yet"


def test_floor_and_loss_by_hand():
    def part(labels):
        return Examples({}, np.array(labels), np.ones(len(labels), dtype=np.int64))

    assert majority_accuracy(part([2, 2, 0]), part([2, 2, 1, 0])) == 0.5
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32))
    expected = -(np.log(0.75) + np.log(0.5)) / 2
    assert cross_entropy(logits, np.array([1, 0])) == pytest.approx(expected, rel=1e-6)
