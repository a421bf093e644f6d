"""The clients of a simulation in processes of this machine: forked once, each serves one client at a time."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, SpawnContext

from flwr.app import Error, Message, UserConfig
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as Proto

from fedsa_lora.learning.together import at_the_same_time
from fedsa_lora.runs.inprocess import InProcessGrid
from fedsa_lora.stopping import end_with_parent
from strategies.round.reasons import KILLED

CRASHED = Error(ErrorCode.CLIENT_APP_CRASHED, KILLED)


def context(threads: int) -> ForkContext | SpawnContext:
    """A way to start processes that train on so many threads. A fork shares the memory of what was imported
    and of the resident model; where a pool of threads is to work in it, or on another system than Linux, it
    may hang, and a process starts anew."""
    if threads == 1 and sys.platform == "linux":
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("spawn")


class WorkerGrid(InProcessGrid):
    """A Grid whose nodes are calls of the ClientApp in ``workers`` processes, until it is closed.

    What was pushed is dealt when an answer is first asked for, and whichever process is idle takes the next
    message, or those that are answered at the same time. Which one does changes no bit. A client whose
    process is killed has crashed; a new one serves the others.
    """

    def __init__(
        self, workers: int, threads: int, nodes: int, run_config: UserConfig, together: int = 1
    ) -> None:
        super().__init__(nodes, run_config, together)
        self._dealt: queue.SimpleQueue[list[Message]] = queue.SimpleQueue()
        start = context(threads)
        self._workers = [Worker(start, nodes, run_config) for _ in range(workers)]  # all before a thread
        for worker in self._workers:
            threading.Thread(target=self._serve_units, args=(worker,), daemon=True).start()

    def __enter__(self) -> WorkerGrid:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.close()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers to these messages that are there."""
        self._deal()
        return [self._answers.pop(key) for key in message_ids if key in self._answers]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        raise NotImplementedError("push the messages, and pull their answers")

    def _deal(self) -> None:
        """Put what waits into the queue of all processes."""
        for unit in sorted(self._units):
            self._dealt.put([*self._take(unit).values()])

    def _serve_units(self, worker: Worker) -> None:
        """Have a process answer one unit after another."""
        while True:
            unit = deque(message for message in self._dealt.get() if not _expired(message))
            while unit:
                try:
                    for reply in worker.answers(unit):
                        self._keep(unit.popleft(), reply)
                except (EOFError, OSError):
                    first = unit.popleft()
                    self._keep(first, Message(CRASHED, reply_to=first))
                    worker.start()

    def _keep(self, message: Message, reply: Message) -> None:
        """Keep an answer for who asks for it; nobody does after the deadline."""
        if not _expired(message):
            self._answers[message.metadata.message_id] = reply


class Worker:
    """A process that answers messages."""

    _starting = threading.Lock()  # a process forked meanwhile would hold the other end of the channel open

    def __init__(self, start: ForkContext | SpawnContext, nodes: int, run_config: UserConfig) -> None:
        self._context, self._nodes, self._run_config = start, nodes, run_config
        self._closed = False
        self.start()

    def start(self) -> None:
        """Start a process, in place of the one before."""
        with Worker._starting:
            if self._closed:
                return
            self._channel, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_answer, args=(theirs, self._nodes, self._run_config), daemon=True
            )
            process.start()
            theirs.close()
            self._process = process

    def answers(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Yields the answer to each message in their order. Raises EOFError or OSError where the process
        ends before; one that was killed while it was idle is replaced first."""
        if not self._process.is_alive():
            self.start()
        self._channel.send([message_to_proto(message).SerializeToString() for message in messages])
        for _ in list(messages):
            yield _read(self._channel.recv_bytes())

    def close(self) -> None:
        """End the process."""
        with Worker._starting:
            self._closed = True
            self._process.kill()
        self._process.join()


def _answer(channel: Connection, nodes: int, run_config: UserConfig) -> None:
    """Answer messages until the other end of the channel is closed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    clients = InProcessGrid(nodes, run_config)
    with suppress(EOFError):
        while True:
            unit = [_read(content) for content in channel.recv()]
            for reply in at_the_same_time([partial(clients.answer, message) for message in unit]):
                channel.send_bytes(message_to_proto(reply).SerializeToString())


def _read(content: bytes) -> Message:
    return message_from_proto(Proto.FromString(content))


def _expired(message: Message) -> bool:
    return time.time() > message.metadata.created_at + message.metadata.ttl
