"""The last look at what leaves: real Flower messages through the real mod, over a real store."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, Message
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import FitIns, RecordDict, ndarrays_to_parameters
from flwr.common.serde import recorddict_to_proto
from flwr.compat.common.recorddict_compat import fitins_to_recorddict

from fedsa_lora.client.egress import Egress, searches
from fedsa_lora.client.last_used import LastUsed
from fedsa_lora.errors import LeakError, StoreError
from fedsa_lora.runs.summary import proof
from fedsa_lora.store import ClientState, DirectoryStore, PassedStore

RNG = np.random.default_rng(0)
A = RNG.normal(size=48).astype(np.float32)


def b_of(round_: int) -> np.ndarray:
    return np.random.default_rng(round_).normal(size=(6, 4)).astype(np.float32)


def store_with(folder: Path, rounds: int = 2) -> DirectoryStore:
    store = DirectoryStore(folder, "7", "e")
    for round_ in range(1, rounds + 1):
        store.save(ClientState(round_, {"x.lora_B.weight": b_of(round_)}))
    return store


def egress(store: DirectoryStore, most: int = 10_000, **options: bool) -> Egress:
    return Egress(store, LastUsed(lambda sketch: sketch.keys.nbytes, most), **options)


def reply_of(egress: Egress, sent: list[np.ndarray], metrics: dict | None = None) -> Message:
    """What a real ClientApp with the mod answers when its client sends these arrays."""

    class Client(NumPyClient):
        def fit(self, parameters, config):
            return sent, 60, metrics or {}

    app = ClientApp(client_fn=lambda context: Client().to_client(), mods=[egress])
    content = fitins_to_recorddict(FitIns(ndarrays_to_parameters([A]), {}), keep_input=True)
    context = Context(1, 7, {}, RecordDict(), {})
    return app(Message(content, dst_node_id=7, message_type="train"), context)


def log_of(store: DirectoryStore) -> list[dict]:
    return [json.loads(line) for line in (store.folder / "egress.jsonl").read_text().splitlines()]


def serialised(reply: Message) -> bytes:
    return recorddict_to_proto(reply.content).SerializeToString()


def test_a_clean_reply_passes_unchanged_and_its_search_is_logged(tmp_path):
    store = store_with(tmp_path)
    reply = reply_of(egress(store), [A])
    (row,) = log_of(store)
    assert row["bytes"] == len(serialised(reply)) > A.nbytes
    assert (row["kind"], row["round"], row["matches"]) == ("train", 2, 0)
    assert row["private_values"] == 2 * 24
    assert A.tobytes() in serialised(reply)


@pytest.mark.case(13)
@pytest.mark.parametrize("round_", [1, 2])
def test_b_of_any_kept_generation_is_not_sent(tmp_path, round_):
    store = store_with(tmp_path)
    with pytest.raises(LeakError, match="train reply of client 7 holds 24 private values and was not sent"):
        reply_of(egress(store), [A, b_of(round_)])
    assert [row["matches"] for row in log_of(store)] == [24]


@pytest.mark.case(13)
def test_four_values_of_b_hidden_in_the_shared_vector_or_in_a_metric_are_not_sent(tmp_path):
    store = store_with(tmp_path)
    planted = A.copy()
    planted[10:14] = b_of(2).ravel()[3:7]
    with pytest.raises(LeakError, match="holds 4 private"):
        reply_of(egress(store), [planted])
    with pytest.raises(LeakError, match="holds 4 private"):
        reply_of(egress(store), [A], {"note": b"hello" + b_of(2).tobytes()[8:24]})


def test_what_a_client_remembers_of_the_common_values_is_not_private(tmp_path):
    store = store_with(tmp_path, rounds=0)
    store.save(ClientState(1, {"x.lora_B.weight": b_of(1)}, {"held": A, "residual": A + 1}))
    reply_of(egress(store), [A, A + 1])
    (row,) = log_of(store)
    assert (row["private_values"], row["matches"]) == (24, 0)


def test_before_its_first_state_a_client_has_nothing_to_leak(tmp_path):
    store = store_with(tmp_path, rounds=0)
    reply_of(egress(store), [A, b_of(1)])
    (row,) = log_of(store)
    assert (row["private_values"], row["round"], row["matches"]) == (0, 0, 0)


def test_the_log_of_searches_rotates_and_all_that_is_kept_is_read_in_order(tmp_path, monkeypatch):
    store = store_with(tmp_path)
    reply_of(egress(store), [A])
    line = len((store.folder / "egress.jsonl").read_bytes())
    monkeypatch.setattr("fedsa_lora.telemetry.journal.MAX_BYTES", 3 * line)
    for _ in range(19):
        reply_of(egress(store), [A])
    files = searches(store.folder)
    assert [path.name for path in files] == [f"egress.jsonl{end}" for end in (".3", ".2", ".1", "")]
    assert all(path.stat().st_size <= 3 * line for path in files)
    rows = [json.loads(row) for path in files for row in path.read_text().splitlines()]
    times = [row["time"] for row in rows]
    assert times == sorted(times)
    assert 7 <= len(rows) <= 12
    assert proof(tmp_path, [])["messages"] == len(rows)


@pytest.mark.case(40)
def test_a_search_that_cannot_be_written_down_is_a_reply_that_is_not_sent(tmp_path, monkeypatch):
    store = store_with(tmp_path)
    reply_of(egress(store), [A])
    before = (store.folder / "egress.jsonl").read_bytes()
    real = open

    class Full:
        """A file on a disk that takes half a line."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            raise OSError(28, "No space left on device")

    def full(path, mode="r", **options):
        file = real(path, mode, **options)
        return Full(file) if mode == "ab" else file

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(
        StoreError, match=r"cannot be recorded \(No space left on device\), so it is not sent"
    ):
        reply_of(egress(store), [A])
    monkeypatch.undo()
    assert (store.folder / "egress.jsonl").read_bytes() == before, "half a line would spoil the next"


def test_kept_messages_are_exactly_the_bytes_of_the_replies_in_order(tmp_path):
    store = store_with(tmp_path)
    replies = [reply_of(egress(store, keep_messages=True), [A + i]) for i in range(3)]
    files = sorted((store.folder / "messages").iterdir())
    assert [path.name for path in files] == [f"{i:06d}-train.bin" for i in range(3)]
    assert [path.read_bytes() for path in files] == [serialised(reply) for reply in replies]
    assert len(log_of(store)) == 3
    assert store.rounds() == [1, 2]


def test_without_being_asked_no_message_is_kept(tmp_path):
    store = store_with(tmp_path)
    reply_of(egress(store), [A])
    assert not (store.folder / "messages").exists()


def test_an_answer_without_content_is_left_alone(tmp_path):
    store = store_with(tmp_path)
    asked = Message(RecordDict(), dst_node_id=7, message_type="train")
    answer = Message(Error(1, "the client failed"), reply_to=asked)
    assert (
        egress(store)(asked, Context(1, 7, {}, RecordDict(), {}), lambda message, context: answer) is answer
    )
    assert not (store.folder / "egress.jsonl").exists()


def test_a_generation_is_read_once_however_many_messages_are_searched(tmp_path, monkeypatch):
    store, read = store_with(tmp_path), []
    load = DirectoryStore.load
    monkeypatch.setattr(DirectoryStore, "load", lambda store, r: read.append(r) or load(store, r))
    at_once = egress(store)
    for _ in range(3):
        reply_of(at_once, [A])
    assert read == [1, 2]
    store.save(ClientState(3, {"x.lora_B.weight": b_of(3)}))
    reply_of(at_once, [A])
    reply_of(at_once, [A])
    assert read == [1, 2, 3]
    assert [row["private_values"] for row in log_of(store)] == 3 * [2 * 24] + 2 * [3 * 24]


@pytest.mark.case(13)
@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.parametrize("round_", [2, 3])
def test_b_that_another_process_saved_since_the_last_search_is_not_sent(tmp_path, round_, passed):
    """Also in the place of a generation that was read, in a file of the same size."""

    def store():
        if passed:
            return PassedStore(tmp_path, "7", "e", 3, tmp_path / "passed")
        return DirectoryStore(tmp_path, "7", "e")

    for before in (1, 2):
        store().save(ClientState(before, {"x.lora_B.weight": b_of(before)}))
    mine = egress(store())
    reply_of(mine, [A, b_of(9)])
    store().save(ClientState(round_, {"x.lora_B.weight": b_of(9)}))
    with pytest.raises(LeakError, match=r"holds \d+ private values"):
        reply_of(mine, [A, b_of(9)])


def test_a_generation_that_is_gone_before_a_match_is_looked_at_stops_what_is_sent(tmp_path, monkeypatch):
    """Another process drops it between the first look and the search."""
    store = store_with(tmp_path)
    mine = egress(store)
    reply_of(mine, [A])
    load = DirectoryStore.load

    def dropped(store: DirectoryStore, round_: int) -> ClientState | None:
        if round_ == 2:
            (store.folder / "round-000002.safetensors").unlink()
        return load(store, round_)

    monkeypatch.setattr(DirectoryStore, "load", dropped)
    with pytest.raises(StoreError):
        reply_of(mine, [A, b_of(2)])
    assert not (store.folder / "round-000002.safetensors").exists()


def test_a_generation_that_was_altered_since_it_was_read_stops_what_is_sent(tmp_path):
    store = store_with(tmp_path)
    mine = egress(store)
    reply_of(mine, [A])
    path = store.folder / "round-000002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(StoreError, match="does not match its digest"):
        reply_of(mine, [A])
