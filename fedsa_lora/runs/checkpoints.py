"""Checkpoints of a run: what its server knew at the end of the last rounds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedsa_lora.errors import RunError, StoreError
from fedsa_lora.exchange.arrays import Arrays
from fedsa_lora.runs.interrupted import CHECKPOINTS
from fedsa_lora.settings import RunConfig
from fedsa_lora.store import ClientState, DirectoryStore

log = logging.getLogger("flwr")


class Checkpoints:
    """Checkpoints in a run directory, one for each of the last rounds."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self._store = DirectoryStore(path, CHECKPOINTS, config.name, config.run.keep_generations)

    def save(self, round_: int, common: Arrays, memory: dict[str, NDArray[Any]]) -> None:
        """Keep what the server knows at the end of a round."""
        self._store.save(ClientState(round_, common, memory))

    def last(self) -> ClientState:
        """The newest. Raises RunError where there is none."""
        state = self._store.load()
        if state is None:
            raise RunError(f"{self.path} has no checkpoint: the run ended before its first round did")
        return state

    def last_sound(self, whole: set[int]) -> ClientState | None:
        """The newest of a whole round that can be read; None where there is none."""
        for round_ in sorted(whole & set(self._store.rounds()), reverse=True):
            try:
                return self._store.load(round_)
            except StoreError as error:
                log.warning("round %d is repeated: %s", round_, error)
        return None
