"""The last look at what leaves a client: Flower mods that search every reply for B and the head, and take its
data and the places of its machine out of what it says of its failures."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Hashable
from functools import partial
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_to_proto

from fedsa_lora.client.last_used import LastUsed
from fedsa_lora.errors import FedSAError, LeakError, StoreError, printable
from fedsa_lora.exchange.arrays import NamedArrays
from fedsa_lora.exchange.witness import Sketch, search
from fedsa_lora.store import DirectoryStore
from fedsa_lora.telemetry.journal import OLDER, append_bounded, current, record_error

SEARCHES = "egress.jsonl"
STOPS = (KeyboardInterrupt, SystemExit)  # end a process; any other, as a panic of a tokenizer, is a failure
log = logging.getLogger("flwr")


def told(error: BaseException) -> str:
    """Words a failure for the server: its kind, and what may leave this machine of it. The client's own
    log has all of it, under the round and the phase that this text refers to; where it has none yet, the
    log of its node has."""
    text = printable(f"{type(error).__name__}: {error}", "\n")
    record_error("error", text)
    log.error("%s", text)
    if not isinstance(error, FedSAError):
        sent = "an unexpected error"
    elif error.is_open:
        return text
    else:
        sent = error.sendable
    return f"{type(error).__name__}: {sent}; the full text is in {_where()}"


def _where() -> str:
    """The log that is being written, and its entries that are about the message at hand."""
    at = current()
    if at.get("client") is None:
        return "the log of its node"
    facts = [f"round {at['round']}"] if at.get("round") is not None else []
    facts += [at["phase"]] if at.get("phase") else []
    return str(at.get("log", "the log of this client")) + (f" ({', '.join(facts)})" if facts else "")


def discreet(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answers with ``told`` whatever a client raises: what is raised to Flower and Ray goes to the server in
    their wrappers, with its text, traceback and addresses."""
    try:
        return call_next(message, context)
    except STOPS:
        raise
    except BaseException as error:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, told(error)), reply_to=message)


class Egress:
    """Searches the serialised replies of one client for the values in its store.

    Each search is a line in ``egress.jsonl`` beside the client's state, of which older lines are kept as
    those of logs are. Raises LeakError, so that nothing is sent, when a private value is found, and
    StoreError when the line cannot be written. A generation that is ``held`` is not read again while its file
    is the same.
    """

    def __init__(self, store: DirectoryStore, held: LastUsed[Sketch], keep_messages: bool = False) -> None:
        self.store, self.held, self.keep_messages = store, held, keep_messages

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if reply.has_content():
            kind = message.metadata.message_type.rsplit(".", 1)[-1]
            self.search(recorddict_to_proto(reply.content).SerializeToString(), kind)
        return reply

    def search(self, content: bytes, kind: str) -> None:
        """Search the bytes of one reply for every generation that the store holds."""
        rounds = self.store.rounds()
        kept = {r: self.store.identity(r) for r in rounds}
        sketches = [self.held(identity, partial(self._sketch, r)) for r, identity in kept.items()]
        found = search(content, sketches, lambda: [self._again(r, identity) for r, identity in kept.items()])
        row = {"time": time.time(), "kind": kind, "round": max(rounds, default=0), "bytes": len(content)}
        row |= {"private_values": sum(sketch.values for sketch in sketches), "matches": found}
        folder = self.store.folder
        try:
            append_bounded(folder / SEARCHES, json.dumps(row))
            if self.keep_messages:
                _keep(folder / "messages", kind, content)
        except OSError as error:
            raise StoreError(
                f"{folder}: the message cannot be recorded ({error.strerror}), so it is not sent: free "
                f"some space, or give this user write permission there",
                sent="its message cannot be recorded, so it is not sent: check space and permissions",
            ) from error
        if found:
            raise LeakError(
                f"a {kind} reply of client {folder.name} holds {found} private values and was not sent: "
                "the split or one of your mods leaks B or the head"
            )

    def _sketch(self, round_: int) -> Sketch:
        return Sketch.of(self._tensors(round_))

    def _again(self, round_: int, identity: Hashable) -> NamedArrays:
        """The tensors of a generation that a sketch was made of. Raises StoreError where it is another now:
        its values cannot be searched for."""
        tensors = self._tensors(round_)
        if self.store.identity(round_) != identity:
            raise StoreError(
                f"{self.store.folder}: round {round_} was replaced while a message was searched for its "
                "values, so it is not sent: let only one run at a time use this store",
                sent="its store changed while a message was searched, so it is not sent",
            )
        return tensors

    def _tensors(self, round_: int) -> NamedArrays:
        state = self.store.load(round_)
        return {} if state is None else state.tensors


def searches(folder: Path) -> list[Path]:
    """The files with the searches of a client's folder, oldest first."""
    older = [folder / f"{SEARCHES}.{number}" for number in range(OLDER, 0, -1)]
    return [path for path in (*older, folder / SEARCHES) if path.is_file()]


def _keep(folder: Path, kind: str, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    count = len(list(folder.iterdir()))
    (folder / f"{count:06d}-{kind}.bin").write_bytes(content)
