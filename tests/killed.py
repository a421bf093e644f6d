"""What runs in the processes that test_kills.py kills."""

from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.store import ClientState, DirectoryStore


def own_b(round_: int) -> dict[str, np.ndarray]:
    return {name: np.full((64, 384), round_ + i, np.float32) for i, name in enumerate("ab")}


def keep_saving(root: Path, saved: int, told: Connection) -> None:
    """A client that saves round after round as it does in ``fit``, and says so each time."""
    store = DirectoryStore(root, "7", "e")
    while True:
        saved += 1
        store.claim("run")
        with store.locked():
            store.save(ClientState(saved, own_b(saved)))
        told.send(saved)


def run(words: list[str]) -> None:
    run_in_process(words)
