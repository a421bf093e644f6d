"""A client's state between rounds, on its own disk.

One safetensors file per round under the client's folder, written to a temporary name, synced,
renamed, and the folder synced: a reader finds the old generation or the new one, never half of
one. The file names its client, round, experiment and run and carries a digest of its tensors.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fedsa_lora.errors import StoreError
from fedsa_lora.exchange.arrays import digest
from fedsa_lora.exchange.wire import stretch
from fedsa_lora.files import locked, sweep, tensors_in, write_atomically, writing
from fedsa_lora.predictions import Predictions, write

_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MEMORY = "memory/"
RESUMED = "resumed"  # in a file's metadata: how often the run had been resumed when it was written
FIRST = stretch(0)  # it had not been
DATA = "data"  # in a file's metadata: the digest of the rows that the client was trained on
log = logging.getLogger("flwr")
_GENERATION = re.compile(r"round-(\d{6,})\.safetensors")


def client_fault(client: str) -> str:
    """The fault of a client id, which names a folder; empty for one that can be used."""
    if _CLIENT.fullmatch(client):
        return ""
    return (
        f"client id {client!r}: expected 1 to 64 letters, digits, '.', '_' or '-', "
        "beginning with a letter or digit"
    )


@dataclass(frozen=True)
class ClientState:
    """State of a client at the end of a round.

    ``tensors`` are private: no value of them may leave. ``memory`` is what it needs to resume, such as
    the residual of its codec or what it last received.
    """

    round: int
    tensors: dict[str, NDArray[np.float32]]
    memory: dict[str, NDArray[np.float32]] = field(default_factory=dict)


class ClientStore(Protocol):
    """Keeps generations of one client's state by round."""

    def claim(self, run: str, resumed: str = FIRST, data: str = "") -> None:
        """From now on this is a run's, in the stretch since it was last resumed; ``data`` is the digest of
        the client's rows, in whose log it stands where they changed. Raises StoreError when what is kept is
        another run's."""
        ...

    def locked(self) -> AbstractContextManager[None]:
        """From load to save: this process alone. Raises StoreError when another is at it."""
        ...

    def load(self, at_round: int | None = None) -> ClientState | None:
        """The newest state not after ``at_round`` (None: the newest), or None when there is none."""
        ...

    def before(self, round_: int) -> ClientState | None:
        """The newest state before a round, to train on. Raises StoreError when a later round was trained
        since the run was last resumed: what asks for this one is an old message."""
        ...

    def save(self, state: ClientState) -> None:
        """Keep a state, all of it or nothing. Later generations belong to a past that was
        abandoned and are dropped."""
        ...

    def record(self, predictions: Predictions) -> None:
        """Keep what the client's model answered when it was last measured."""
        ...

    def salted(self, digest: str) -> str:
        """The digest of private tensors as the server may have it."""
        ...

    def count_evaluation(self, round_: int) -> None:
        """Note that a round is evaluated. Raises StoreError when it was as often as the node allows."""
        ...


class DirectoryStore:
    """A client's generations as files under ``root / client``; the last ``keep`` are kept.

    The client's folder is made, the ``root`` is not: that of a run which was deleted meanwhile stays deleted.
    Raises StoreError for an id that is no plain file name, and when a file is truncated, altered
    or of another experiment: continuing with another B would train the wrong model in silence.
    """

    def __init__(self, root: Path, client: str, experiment: str, keep: int = 3) -> None:
        if fault := client_fault(client):
            raise StoreError(fault, sent="its client id is not a plain name")
        self.folder = root / client
        self._metadata = {"client": client, "experiment": experiment}
        self._keep, self._resumed, self._data = keep, FIRST, ""

    def claim(self, run: str, resumed: str = FIRST, data: str = "") -> None:
        self._metadata["run"], self._resumed, self._data = run, resumed, data
        for newest in self.rounds()[-1:]:
            with _opened(self._path(newest)) as file:
                metadata = file.metadata() or {}
            self._check_owner(self._path(newest), metadata, newest)
            trained_on = metadata.get(DATA, "")
            if trained_on and data and trained_on != data:
                log.warning(
                    "the data of client %s differ from those of round %d: its test part may hold examples "
                    "that it was trained on",
                    self._metadata["client"],
                    newest,
                )

    def make(self) -> None:
        """The client's folder, in a root that is there."""
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)

    def locked(self) -> AbstractContextManager[None]:
        self.make()
        return locked(
            self.folder,
            lambda holder: StoreError(
                f"{self.folder} is in use by {holder}: wait until its run has ended, or give each run its "
                f"own store (run.store, or store in the node config)",
                sent="its store is in use by another process: wait until that run has ended",
            ),
        )

    def rounds(self) -> list[int]:
        """The rounds of which a generation is kept, oldest first."""
        try:
            files = os.listdir(self.folder)
        except OSError:  # no folder, or none that can be read: what is done in it next says so
            return []
        names = map(_GENERATION.fullmatch, files)
        return sorted(int(name[1]) for name in names if name)

    def load(self, at_round: int | None = None) -> ClientState | None:
        usable = [r for r in self.rounds() if at_round is None or r <= at_round]
        return self._read(usable[-1]) if usable else None

    def identity(self, round_: int) -> Hashable:
        """Of a kept generation, as it is now: no other, and none that is written in its place, has the same.
        Raises StoreError where there is none."""
        path = self._path(round_)
        try:
            found = path.stat()
        except OSError as error:
            raise _unreadable(path, str(error)) from None
        return path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def before(self, round_: int) -> ClientState | None:
        for newest in [kept for kept in self.rounds() if kept > round_][-1:]:
            with _opened(self._path(newest)) as file:
                written_in = (file.metadata() or {}).get(RESUMED, FIRST)
            if written_in == self._resumed:
                raise StoreError(
                    f"round {round_} was requested too late: this client has trained round {newest} since, "
                    f"and continues from that",
                    sent="the round was requested too late: it has trained a later one since",
                )
        return self.load(round_ - 1)

    def save(self, state: ClientState) -> None:
        if taken := sorted(name for name in state.tensors if name.startswith(_MEMORY)):
            raise StoreError(f"{taken}: a tensor's name cannot begin with {_MEMORY!r}, as memory's do")
        everything = state.tensors | {_MEMORY + name: array for name, array in state.memory.items()}
        metadata = self._metadata | {
            "round": str(state.round),
            RESUMED: self._resumed,
            DATA: self._data,
        }
        metadata["digest"] = digest(everything)
        self.make()
        sweep(self.folder)
        # safetensors writes an array's memory as it lies, which for a transposed view is another matrix
        tensors = {name: np.asarray(array, order="C") for name, array in everything.items()}
        write_atomically(self._path(state.round), save(tensors, metadata))
        rounds = self.rounds()
        kept = [r for r in rounds if r <= state.round][-self._keep :]
        for stale in set(rounds) - set(kept):
            self._path(stale).unlink()

    def record(self, predictions: Predictions) -> None:
        write(self.folder, predictions)

    def salted(self, digest: str) -> str:
        """As it is: in a simulation the server's machine holds the tensors themselves, and two runs can be
        compared by it."""
        return digest

    def count_evaluation(self, round_: int) -> None:
        """A simulated client is evaluated as often as its run asks."""

    def _path(self, round_: int) -> Path:
        return self.folder / f"round-{round_:06d}.safetensors"

    def _read(self, round_: int) -> ClientState:
        path = self._path(round_)
        with _opened(path) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self._check_owner(path, metadata, round_)
        if metadata.get("digest") != digest(tensors):
            raise StoreError(
                f"{path} does not match its digest: its values were modified; restore it from a copy, or "
                f"delete it to continue from the previous generation",
                sent="a stored state was modified: restore or delete it on its machine",
            )
        memory = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_MEMORY)}
        return ClientState(round_, tensors, {n.removeprefix(_MEMORY): array for n, array in memory.items()})

    def _check_owner(self, path: Path, metadata: dict[str, str], round_: int) -> None:
        known = {"run": ""} | metadata  # a store that nobody claimed is of no run
        for key, expected in (self._metadata | {"round": str(round_)}).items():
            if known.get(key) != expected:
                raise StoreError(
                    f"{path} belongs to {key} {known.get(key)!r}, this is {expected!r}: use another "
                    "store folder for another experiment or run",
                    sent="its store holds the state of another run or experiment: choose another run.dir",
                )


def _opened(path: Path) -> AbstractContextManager[Any]:
    return tensors_in(path, partial(_unreadable, path))


def _unreadable(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path} is unreadable ({reason}): it was truncated or corrupted; restore it from a copy, or "
        f"delete it to continue from the previous generation",
        sent="a stored state is unreadable: restore or delete it on its machine",
    )


class PassedStore(DirectoryStore):
    """A client's store whose private tensors are those that any client saved last, in ``passed``.

    What the code of arXiv:2410.01463 does, where one model serves all clients in turn and nobody saves B and
    the head. Each client also keeps its own, and has its memory for itself.
    """

    def __init__(self, root: Path, client: str, experiment: str, keep: int, passed: Path) -> None:
        super().__init__(root, client, experiment, keep)
        self._passed = DirectoryStore(passed.parent, passed.name, experiment, keep=1)

    def load(self, at_round: int | None = None) -> ClientState | None:
        own, last = super().load(at_round), self._passed.load()
        if own is None or last is None:
            return last
        return ClientState(own.round, last.tensors, own.memory)

    def identity(self, round_: int) -> Hashable:
        return super().identity(round_), *map(self._passed.identity, self._passed.rounds())

    def save(self, state: ClientState) -> None:
        super().save(state)
        self._passed.save(ClientState(state.round, state.tensors))
