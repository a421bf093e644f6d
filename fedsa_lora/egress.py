"""The last look at what leaves a client: Flower mods that search every reply for B and the head, and take its
data and the places of its machine out of what it says of its failures."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_to_proto

from fedsa_lora.errors import FedSAError, LeakError
from fedsa_lora.exchange.witness import matches, private_values
from fedsa_lora.store import DirectoryStore

log = logging.getLogger("flwr")
_QUOTED = re.compile(r"""(['"])(?:file://)?~?/(?:[^'"\n]*/)?([^/'"\n]*)\1""")
_PATH = re.compile(
    r"""(?:file:(?=/)|(?<![\w/.:])|(?<=:)(?!//))~?/+(?:[^\s/'",;()\[\]]+/+)*([^\s/'",;()\[\]]*)"""
)


def told(error: Exception) -> str:
    """What the server is told of a failure: its kind and its text, without the data that it quotes, where of
    each absolute path only the last part is left. The client's own log has all of it."""
    log.error("%s: %s", type(error).__name__, error)
    return f"{type(error).__name__}: {_sendable(error)}"


def _sendable(error: Exception) -> str:
    return without_places(error.sendable if isinstance(error, FedSAError) else str(error))


def without_places(text: str) -> str:
    """A text in which every absolute path of this machine is cut to its last part."""
    for folder in sorted({str(Path.home()), str(Path.cwd())} - {"/"}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "/")
    return _PATH.sub(r"\1", _QUOTED.sub(r"\1\2\1", text))


def discreet(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answers with the reason of whatever a client raises, as ``told`` gives it: what is raised to Flower and
    Ray goes to the server in their wrappers, with traceback and addresses."""
    try:
        return call_next(message, context)
    except Exception as error:
        log.exception("a %s message is answered by a failure", message.metadata.message_type)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, told(error)), reply_to=message)


class Egress:
    """Searches the serialised replies of one client for the values in its store.

    Each search is a line in ``egress.jsonl`` beside the client's state. Raises LeakError, so that
    nothing is sent, when a private value is found.
    """

    def __init__(self, store: DirectoryStore, keep_messages: bool = False) -> None:
        self.store, self.keep_messages = store, keep_messages

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if reply.has_content():
            kind = message.metadata.message_type.rsplit(".", 1)[-1]
            self.search(recorddict_to_proto(reply.content).SerializeToString(), kind)
        return reply

    def search(self, content: bytes, kind: str) -> None:
        """Search the bytes of one reply for every generation that the store holds."""
        rounds = self.store.rounds()
        states = [state.tensors for r in rounds if (state := self.store.load(r)) is not None]
        found = matches(content, private_values(states))
        row = {"time": time.time(), "kind": kind, "round": max(rounds, default=0), "bytes": len(content)}
        row |= {"private_values": sum(a.size for s in states for a in s.values()), "matches": found}
        folder = self.store.folder
        folder.mkdir(exist_ok=True)
        with open(folder / "egress.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        if self.keep_messages:
            self._keep(folder / "messages", kind, content)
        if found:
            raise LeakError(
                f"a {kind} reply of client {folder.name} holds {found} private values and was not sent: "
                "the split or a mod of yours lets B or the head out"
            )

    def _keep(self, folder: Path, kind: str, content: bytes) -> None:
        folder.mkdir(exist_ok=True)
        count = len(list(folder.iterdir()))
        (folder / f"{count:06d}-{kind}.bin").write_bytes(content)
