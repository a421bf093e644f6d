"""The store of a deployed node's client: read by its own user alone, and bounded, whoever starts the runs."""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from stat import S_IRWXG, S_IRWXO

from fedsa_lora.config.outside import run_name_fault
from fedsa_lora.deployment.node_config import Node
from fedsa_lora.errors import ConfigError, StoreError
from fedsa_lora.files import write_atomically, writing
from fedsa_lora.settings import RunConfig
from fedsa_lora.store import DirectoryStore

SECRET, SECRET_BYTES = "secret", 32
EVALUATED, COUNTED = "evaluated.json", 1000  # evaluations by round, of the newest rounds
GB = 1_000_000_000
_OTHERS = S_IRWXG | S_IRWXO


class NodeStore(DirectoryStore):
    """``DirectoryStore`` of a node that serves runs of other people.

    ``evaluations``: answers to the evaluate messages of one round, also when the run is resumed in between; a
    further one raises StoreError.
    """

    def __init__(self, root: Path, client: str, experiment: str, keep: int, evaluations: int) -> None:
        super().__init__(root, client, experiment, keep)
        self.evaluations = evaluations

    def salted(self, digest: str) -> str:
        """HMAC-SHA256 of a digest under this client's secret, as many hex digits: equal digests stay equal
        from round to round, and whoever guesses the tensors cannot test the guess."""
        return hmac.new(self._secret(), digest.encode(), sha256).hexdigest()[: len(digest)]

    def count_evaluation(self, round_: int) -> None:
        path = self.folder / EVALUATED
        try:
            answers = {int(known): int(count) for known, count in json.loads(path.read_bytes()).items()}
        except (OSError, ValueError, TypeError, AttributeError):  # none yet, or cut off by a power failure
            answers = {}
        given = answers.get(round_, 0)
        if given >= self.evaluations:
            raise StoreError(
                f"round {round_} was evaluated {given} times, as often as this node allows (evaluations="
                f"{self.evaluations} in its node config)",
                sent="the round was evaluated as often as this node allows",
            )
        answers[round_] = given + 1
        newest = sorted(answers)[-COUNTED:]
        if round_ not in newest:
            raise StoreError(
                f"round {round_} is evaluated too late: round {newest[-1]} was evaluated since",
                sent="the round is evaluated too late: a later one was evaluated since",
            )
        self.make()
        content = json.dumps({known: answers[known] for known in newest})
        write_atomically(path, content.encode(), durable=False)

    def make(self) -> None:
        """The client's folder, wherever the node's user wants it, closed to other users: also what an older
        version, or a copy, left open to them."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.folder.stat().st_mode & _OTHERS:
                self.folder.chmod(0o700)
                for path in self.folder.rglob("*"):
                    if not path.is_symlink():
                        path.chmod(path.stat().st_mode & ~_OTHERS)

    def _secret(self) -> bytes:
        path = self.folder / SECRET
        if not path.exists():
            with unreadable_by_others():
                self.make()
                write_atomically(path, os.urandom(SECRET_BYTES))
        secret = path.read_bytes()
        if len(secret) != SECRET_BYTES:
            raise StoreError(
                f"{path} does not hold {SECRET_BYTES} bytes: it was truncated or modified; restore it from "
                f"a copy, or delete it, and the server will once report that this client's B is another",
                sent="the secret in its store was truncated or modified",
            )
        return secret


def node_store(config: RunConfig, node: Node, root: Path) -> NodeStore:
    """The store of a node's client: below ``root``, the store that the node names, in a folder for each run.

    Raises ConfigError where the node does not do what the run asks of its store.
    """
    if fault := run_name_fault(config.run_dir.name):
        raise ConfigError(fault, sent="a node cannot name a folder after this run directory", key="run.dir")
    if config.run.keep_messages and not node.keep_messages:
        raise ConfigError(
            "run.keep_messages: this node keeps no messages; start it with keep-messages=true, or the run "
            "without",
            sent="this node keeps no messages",
            key="run.keep_messages",
        )
    place, experiment = root / config.run_dir.name, config.experiment
    return NodeStore(place, node.client, experiment, config.run.keep_generations, node.evaluations)


@contextmanager
def unreadable_by_others() -> Iterator[None]:
    """Makes what this process creates meanwhile its user's alone, files 0600 and folders 0700, whatever umask
    it was started with."""
    before = os.umask(_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def check_room(root: Path, limit: float) -> None:
    """Raise StoreError where a node's store, with all its runs, holds ``limit`` GB or more."""
    held = sum(_size(Path(folder, name)) for folder, _, names in os.walk(root) for name in names)
    if held >= limit * GB:
        raise StoreError(
            f"{root} holds {held / GB:.2f} GB, but this node allows {limit:g} (store-limit in its node "
            "config): delete the folders of finished runs, or raise the limit",
            sent="its store has reached the limit of its node config",
        )


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:  # replaced just now
        return 0
