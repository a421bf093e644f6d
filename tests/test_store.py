"""A client's state survives everything or is refused; it is never another one in silence."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fedsa_lora import predictions
from fedsa_lora.client.session import Session
from fedsa_lora.errors import RunError, StoreError
from fedsa_lora.exchange.arrays import digest
from fedsa_lora.store import ClientState, DirectoryStore

KILLS = 20
WRITER = """
import sys
from pathlib import Path
import numpy as np
from fedsa_lora.store import ClientState, DirectoryStore
store, round_ = DirectoryStore(Path(sys.argv[1]), "7", "e"), int(sys.argv[2])
while True:
    tensors = {name: np.full((64, 384), round_ + i, np.float32) for i, name in enumerate("ab")}
    store.save(ClientState(round_, tensors))
    print(round_, flush=True)
    round_ += 1
"""


def state(round_: int = 1, seed: int = 0) -> ClientState:
    rng = np.random.default_rng((round_, seed))
    shapes = {"x.lora_B.weight": (6, 2), "classifier.weight": (3, 6), "classifier.bias": (3,)}
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return ClientState(round_, tensors, {"residual": rng.normal(size=9).astype(np.float32)})


def store(folder: Path, client: str = "7", experiment: str = "e", keep: int = 3) -> DirectoryStore:
    return DirectoryStore(folder, client, experiment, keep)


def same(found: ClientState | None, expected: ClientState) -> bool:
    return (
        found is not None
        and found.round == expected.round
        and found.tensors.keys() == expected.tensors.keys()
        and digest(found.tensors) == digest(expected.tensors)
        and found.memory.keys() == expected.memory.keys()
        and digest(found.memory) == digest(expected.memory)
    )


def load_or_refusal(folder: Path) -> ClientState | str | None:
    try:
        return store(folder).load()
    except StoreError as error:
        return str(error)


def generation(folder: Path, round_: int = 1) -> Path:
    return folder / "7" / f"round-{round_:06d}.safetensors"


def test_a_state_comes_back_to_the_bit(tmp_path):
    odd = np.array([0.0, -0.0, np.nan, -np.inf, 1e-45, 3.4e38], np.float32)
    square = np.arange(12, dtype=np.float32).reshape(3, 4)
    views = {"fortran": np.asfortranarray(square), "strided": square[:, ::2], "transposed": square.T}
    tensors = {"odd": odd, "none": np.zeros((0, 4), np.float32), "scalar": np.array(2.5, np.float32), **views}
    memory = {"odd": odd[::-1], "merged/odd": square.T, "start/memory/odd": square}
    store(tmp_path).save(ClientState(1, tensors, memory))
    found = store(tmp_path).load()
    for kept, saved in ((found.tensors, tensors), (found.memory, memory)):
        assert kept.keys() == saved.keys()
        for name, array in saved.items():
            assert kept[name].shape == array.shape
            assert kept[name].tobytes() == array.tobytes()


def test_a_tensor_under_the_name_of_a_memory_is_refused_and_nothing_is_written(tmp_path):
    one = np.zeros(1, np.float32)
    with pytest.raises(
        StoreError, match=r"\['memory/residual'\]: a tensor's name cannot begin with 'memory/'"
    ):
        store(tmp_path).save(ClientState(1, {"x": one, "memory/residual": one}, {"residual": one}))
    assert store(tmp_path).rounds() == []


def test_a_client_without_private_tensors_has_a_state_too(tmp_path):
    store(tmp_path).save(ClientState(1, {}))
    assert store(tmp_path).load() == ClientState(1, {})


def test_before_the_first_round_there_is_no_state(tmp_path):
    assert store(tmp_path).load() is None
    assert store(tmp_path).rounds() == []
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=40, deadline=None)
@given(rounds=st.lists(st.integers(1, 9), min_size=1, max_size=8), keep=st.integers(1, 4))
def test_the_store_holds_the_last_rounds_of_the_past_that_was_not_abandoned(tmp_path_factory, rounds, keep):
    kept = store(tmp_path_factory.mktemp("store"), keep=keep)
    expected: dict[int, int] = {}
    for time_, round_ in enumerate(rounds):
        kept.save(state(round_, seed=time_))
        expected = {r: t for r, t in expected.items() if r < round_} | {round_: time_}
        expected = dict(sorted(expected.items())[-keep:])
        assert kept.rounds() == list(expected)
        for at in range(11):
            usable = [r for r in expected if r <= at]
            found = kept.load(at)
            assert same(found, state(usable[-1], expected[usable[-1]])) if usable else found is None
        assert same(kept.load(), state(round_, time_))


def test_rounds_are_ordered_as_numbers_beyond_six_digits(tmp_path):
    for round_ in (999_999, 1_000_000):
        store(tmp_path).save(state(round_))
    assert store(tmp_path).rounds() == [999_999, 1_000_000]
    assert same(store(tmp_path).load(), state(1_000_000))


def test_clients_of_one_folder_do_not_meet(tmp_path):
    for client in ("7", "77", "7.a"):
        store(tmp_path, client).save(state(1, seed=len(client)))
    for client in ("7", "77", "7.a"):
        assert same(store(tmp_path, client).load(), state(1, seed=len(client)))


def test_a_client_goes_back_only_in_a_run_that_was_resumed(tmp_path):
    kept = store(tmp_path)
    for round_ in (1, 2, 3):
        kept.claim("run")
        kept.save(state(round_, seed=round_))
    with pytest.raises(StoreError, match="round 2 was requested too late: this client has trained round 3"):
        kept.before(2)
    assert same(kept.before(3), state(2, seed=2)), "asked once more"
    assert same(kept.before(4), state(3, seed=3))
    kept.claim("run", resumed="0001")
    assert same(kept.before(2), state(1, seed=1))
    kept.save(state(2, seed=9))
    assert kept.rounds() == [1, 2]
    with pytest.raises(StoreError, match="too late"):
        kept.before(1)


@pytest.mark.case(24)
@pytest.mark.parametrize(
    "client", ["../x", "/etc/x", "..", ".", ".hidden", "", "a\0b", "a/b", "a\\b", "a\n", "-rf", "é", "x" * 65]
)
def test_an_id_that_is_no_plain_file_name_is_refused_and_writes_nothing(tmp_path, client):
    with pytest.raises(StoreError, match="client id"):
        store(tmp_path / "root", client)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("client", ["0", "x" * 64, "hospital-7_b.eu"])
def test_an_id_that_is_a_plain_file_name_is_taken(tmp_path, client):
    store(tmp_path, client).save(state())
    assert (tmp_path / client / "round-000001.safetensors").is_file()


@pytest.mark.case(23)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_file_cut_off_anywhere_is_refused_with_its_name_and_a_remedy(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("store")
    store(folder).save(state())
    path = generation(folder)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(StoreError, match=f"^{path}.*delete it to continue from the previous generation"):
        store(folder).load()


@pytest.mark.case(23)
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_an_altered_byte_is_refused_or_leaves_every_bit_of_the_state_as_it_was(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("store")
    store(folder).save(state())
    path = generation(folder)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    outcome = load_or_refusal(folder)
    assert outcome.startswith(str(path)) if isinstance(outcome, str) else same(outcome, state())


@pytest.mark.case(23)
@pytest.mark.parametrize("name", ["x.lora_B.weight", "memory/residual"])
def test_a_flipped_bit_in_a_value_is_refused(tmp_path, name):
    store(tmp_path).save(state())
    path = generation(tmp_path)
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    content[begin + json.loads(content[8:begin])[name]["data_offsets"][0]] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"^{path} does not match its digest.*restore it from a copy"):
        store(tmp_path).load()


def test_after_the_bad_file_is_deleted_the_generation_before_is_loaded(tmp_path):
    for round_ in (1, 2):
        store(tmp_path).save(state(round_))
    generation(tmp_path, 2).write_bytes(b"")
    with pytest.raises(StoreError, match="round-000002"):
        store(tmp_path).load()
    assert same(store(tmp_path).load(at_round=1), state(1))
    generation(tmp_path, 2).unlink()
    assert same(store(tmp_path).load(), state(1))


def test_the_state_of_another_client_experiment_or_round_is_refused(tmp_path):
    store(tmp_path).save(state())
    with pytest.raises(StoreError, match=r"belongs to experiment 'e', this is 'f'.*another store folder"):
        store(tmp_path, experiment="f").load()
    (tmp_path / "8").mkdir()
    generation(tmp_path).rename(tmp_path / "8" / generation(tmp_path).name)
    with pytest.raises(StoreError, match="belongs to client '7', this is '8'"):
        store(tmp_path, "8").load()
    store(tmp_path).save(state())
    generation(tmp_path).rename(generation(tmp_path, 2))
    with pytest.raises(StoreError, match="belongs to round '1', this is '2'"):
        store(tmp_path).load()


@pytest.mark.case(26)
def test_tensors_that_nobody_signed_are_refused(tmp_path):
    generation(tmp_path).parent.mkdir()
    generation(tmp_path).write_bytes(save(state().tensors))
    with pytest.raises(StoreError, match="belongs to client None"):
        store(tmp_path).load()
    signed = {"client": "7", "experiment": "e", "round": "1"}
    generation(tmp_path).write_bytes(save(state().tensors, signed))
    with pytest.raises(StoreError, match="digest"):
        store(tmp_path).load()


@pytest.mark.case(26)
def test_a_pickle_under_the_name_of_a_state_is_refused_and_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "was-run").touch, ()

    generation(tmp_path).parent.mkdir()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        generation(tmp_path).write_bytes(pickle.dumps(Bomb(), protocol))
        with pytest.raises(StoreError, match="is unreadable"):
            store(tmp_path).load()
    assert not (tmp_path / "was-run").exists()


@pytest.mark.case(23)
@pytest.mark.parametrize(
    ("name", "read", "remedy"),
    [
        ("session.safetensors", Session.last, "remove it, and the client starts its round again"),
        ("predictions.safetensors", predictions.read, "`fedsa-lora evaluate` writes it again"),
    ],
)
@pytest.mark.parametrize(
    "content", [b"", b"\x02" + bytes(7) + b"{}", b"\xff" * 20], ids=["none", "bare", "odd"]
)
def test_what_a_client_keeps_beside_its_state_is_refused_with_its_name_and_a_remedy(
    tmp_path, name, read, remedy, content
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StoreError, match=f"^{tmp_path / name} is unreadable .*{remedy}"):
        read(tmp_path)


@pytest.mark.case(22)
def test_a_failed_save_leaves_every_generation_as_it_was(tmp_path, monkeypatch):
    for round_ in (1, 2):
        store(tmp_path, keep=2).save(state(round_))

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RunError, match="No space left"):
            store(tmp_path, keep=2).save(state(3))
    assert store(tmp_path).rounds() == [1, 2]
    assert same(store(tmp_path).load(), state(2))


@pytest.mark.case(18)
def test_what_a_killed_writer_left_is_swept_at_the_next_save_of_any_round(tmp_path):
    store(tmp_path).save(state(1))
    (tmp_path / "7" / ".round-000002.safetensors.999999.tmp").write_bytes(b"half")
    assert same(store(tmp_path).load(), state(1))
    store(tmp_path).save(state(3))
    assert sorted(os.listdir(tmp_path / "7")) == ["round-000001.safetensors", "round-000003.safetensors"]


@pytest.mark.case(18)
def test_a_writer_killed_at_any_moment_leaves_a_complete_state(tmp_path, record_property, trials):
    kills = trials(KILLS)
    record_property("trials", kills)
    rng, kept, saved = np.random.default_rng(0), store(tmp_path), 0
    for _ in range(kills):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(saved + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.02))
            writer.send_signal(signal.SIGKILL)
            told = [int(line) for line in writer.stdout.read().splitlines() if line.isdigit()]
        found = kept.load()
        assert found is not None
        assert found.round >= max([saved + 1, *told])
        for round_ in kept.rounds():
            tensors = kept.load(round_).tensors
            assert sorted(tensors) == ["a", "b"]
            for i, name in enumerate("ab"):
                np.testing.assert_array_equal(
                    tensors[name], np.full((64, 384), round_ + i, np.float32), strict=True
                )
        saved = found.round
    kept.save(state(saved + 1))
    assert all(name.endswith(".safetensors") for name in os.listdir(tmp_path / "7"))
