"""kill -9, with real processes: a client while it saves, a server at any moment."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from disk import killed_at, watching
from test_finish import assert_same_results
from test_resume import assert_same_run

from fedsa_lora.config.compose import read_config
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.interrupted import last_whole_round
from fedsa_lora.runs.reading import read_json
from fedsa_lora.server.finish import finish_interrupted
from fedsa_lora.store import ClientState, DirectoryStore

pytestmark = pytest.mark.faults
CLIENT_KILLS, SERVER_KILLS, CHAIN_KILLS = 100, 20, 20
CLIENTS = """
import os, sys
from pathlib import Path
import numpy as np
from fedsa_lora.store import ClientState, DirectoryStore

def keep_saving(root, saved):
    store = DirectoryStore(root, "7", "e")
    while True:
        saved += 1
        store.claim("run")
        with store.locked():
            tensors = {name: np.full((64, 384), saved + i, np.float32) for i, name in enumerate("ab")}
            store.save(ClientState(saved, tensors))
        os.write(1, f"{saved}\\n".encode())  # at once or not at all, whenever it is killed

for line in sys.stdin:
    if (client := os.fork()) == 0:
        print(os.getpid(), flush=True)
        keep_saving(Path(sys.argv[1]), int(line))
    os.waitpid(client, 0)
    print("killed", flush=True)
"""
RUN = (
    "experiment=smoke", "run.report=false", "federation.clients=2", "codec=topk", "strategy=fedadam",
    "evaluation.local_only=false", "run.keep_generations=9",
)  # fmt: skip
FINISHED = [*RUN, "run.report=true", "federation.rounds=2"]


def own_b(round_: int) -> dict[str, np.ndarray]:
    return {name: np.full((64, 384), round_ + i, np.float32) for i, name in enumerate("ab")}


@pytest.mark.case(18)
def test_no_b_is_lost_or_corrupt_after_a_hundred_kills_of_the_client_that_saves_it(tmp_path, record_property):
    record_property("trials", CLIENT_KILLS)
    rng, saved, store = np.random.default_rng(0), 0, DirectoryStore(tmp_path, "7", "e")
    store.claim("run")
    command = [sys.executable, "-c", CLIENTS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        assert clients.stdin is not None
        assert clients.stdout is not None
        for _ in range(CLIENT_KILLS):
            clients.stdin.write(f"{saved}\n")
            clients.stdin.flush()
            process, told = int(clients.stdout.readline()), [int(clients.stdout.readline())]
            time.sleep(rng.uniform(0, 0.02))
            os.kill(process, signal.SIGKILL)
            told += [int(line) for line in iter(clients.stdout.readline, "killed\n")]
            with store.locked():  # which the killed one held, most of the time
                kept = {round_: store.load(round_) for round_ in store.rounds()}
            saved = max(kept)
            assert saved in (told[-1], told[-1] + 1)
            assert sorted(kept) == list(range(saved - len(kept) + 1, saved + 1))
            assert len(kept) >= min(3, saved)
            for round_, state in kept.items():
                assert state.tensors.keys() == {"a", "b"}
                assert all(np.array_equal(state.tensors[n], array) for n, array in own_b(round_).items())
        clients.stdin.close()
    store.save(ClientState(saved + 1, own_b(saved + 1)))
    assert all(name.endswith(".safetensors") for name in os.listdir(tmp_path / "7"))


def serve(words: list[str]) -> None:
    run_in_process(words)


def begun(folder: Path) -> int:
    """The last round that a client trained in."""
    states = (folder / "clients").glob("*/round-*.safetensors")
    return max((int(path.stem.split("-")[1]) for path in states), default=0)


def resumptions(folder: Path) -> list[int]:
    """The rounds after which a run was gone on with."""
    path = folder / "environment.json"
    told = json.loads(path.read_text()).get("resumed", []) if path.exists() else []
    return [each["after_round"] for each in told]


def at_work(folder: Path, before: int, resumed: bool) -> bool:
    """Whether a server that was started has begun its run, or gone on with it."""
    return len(resumptions(folder)) > before if resumed else (folder / "partition.json").exists()


@pytest.mark.case(19)
def test_a_server_that_is_killed_anywhere_makes_at_most_one_round_again_and_ends_with_the_same_bits(
    tmp_path, record_property
):
    record_property("trials", SERVER_KILLS)
    processes = multiprocessing.get_context("forkserver")  # a clean process that has imported everything
    processes.set_forkserver_preload(["pytest", "fedsa_lora.runs.inprocess"])
    rng, folder, last = np.random.default_rng(0), tmp_path / "run", 0
    words = [*RUN, f"run.dir={folder}"]
    for _ in range(SERVER_KILLS):
        before = len(resumptions(folder))
        again = ["run.resume=true"] if last else []
        server = processes.Process(target=serve, args=([*words, "federation.rounds=999", *again],))
        server.start()
        further = last + rng.integers(
            3
        )  # so many rounds are begun at the least, however slow this machine is
        while server.is_alive() and not (at_work(folder, before, last > 0) and begun(folder) >= further):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        assert server.is_alive()
        server.kill()
        server.join()
        if last:
            assert last - 1 <= resumptions(folder)[-1] <= last, (
                "at most one round of those begun is made again"
            )
        if not (folder / "rounds.jsonl").exists():  # killed in its first round
            shutil.rmtree(folder)
        last = begun(folder)
    assert last >= SERVER_KILLS // 4, "the kills are spread over a run"
    rounds = f"federation.rounds={last + 1}"
    run_in_process([*words, rounds, "run.resume=true"])
    assert last - 1 <= resumptions(folder)[-1] <= last
    assert_same_run(folder, run_in_process([*RUN, rounds, f"run.dir={tmp_path / 'whole'}"]))


def serve_until(words: list[str], folder: Path, number: int) -> None:
    """Begin, resume or finish a run, as it needs, and be killed at a write."""
    with watching(folder, killed_at(number)):
        if not (folder / "rounds.jsonl").exists():
            run_in_process(words)
        elif not finish_interrupted(read_config(folder), words):
            run_in_process([*words, "run.resume=true"])


@pytest.mark.case(36)
def test_however_often_a_run_is_killed_from_its_begin_to_the_end_of_its_finish_resume_completes_it(
    tmp_path, record_property
):
    record_property("trials", CHAIN_KILLS)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pytest", "fedsa_lora.runs.inprocess"])
    whole = run_in_process([*FINISHED, f"run.dir={tmp_path / 'whole'}"])
    rng, kills, finishing, chain = np.random.default_rng(0), 0, 0, 0
    while kills < CHAIN_KILLS:
        chain += 1
        folder, ended = tmp_path / f"run-{chain}", False
        while not ended:
            number = int(rng.integers(1, 150)) if kills < CHAIN_KILLS else 1_000_000
            words = [*FINISHED, f"run.dir={folder}"]
            server = processes.Process(target=serve_until, args=(words, folder, number))
            server.start()
            server.join()
            ended = server.exitcode == 0
            status = read_json(folder / "status.json") if (folder / "status.json").exists() else {}
            assert (status.get("state") == "completed") == ended, "completed last of all, and never before"
            if not ended:
                assert server.exitcode == -signal.SIGKILL
                kills += 1
                finishing += status.get("phase") == "finishing"
                if not last_whole_round(folder) and folder.exists():
                    shutil.rmtree(folder)  # there is nothing to resume
        assert_same_run(folder, whole)
        assert_same_results(folder, whole)
    assert finishing >= CHAIN_KILLS // 5, "the kills are spread over the finish as well"
