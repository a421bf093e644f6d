"""The same ServerApp and ClientApp in this process, one client at a time, without Ray.

For tests, sweeps and debugging. Messages are serialised as they are on the wire, and the result is
the same to the bit as that of ``flwr run``.
"""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp.grid import Grid
from flwr.supercore.run import Run

from fedsa_lora.client_app import app as client_app
from fedsa_lora.config.compose import handed, load, to_yaml
from fedsa_lora.config.paths import places
from fedsa_lora.decision import cohort_size
from fedsa_lora.errors import RunError
from fedsa_lora.launch.resuming import is_complete, last_file
from fedsa_lora.learning.together import at_the_same_time
from fedsa_lora.server_app import app as server_app
from fedsa_lora.settings import RunConfig
from fedsa_lora.simulation import SIMULATION

Unit = tuple[str, str, int]  # type, round and block of neighbours of messages that are answered together


class InProcessGrid(Grid):
    """A Grid whose nodes are calls of the ClientApp, by default ours. Messages of one type to ``together``
    neighbours are answered at the same time."""

    def __init__(
        self, nodes: int, run_config: UserConfig, together: int = 1, app: ClientApp = client_app
    ) -> None:
        self._app = app
        self._run = Run.create_empty(run_id=1)
        self._together = together
        self._answers: dict[str, Message] = {}  # by the id of the message
        self._ids = itertools.count(1)
        self._unanswered: dict[str, Message] = {}  # by id
        self._units: dict[Unit, list[str]] = {}  # ids
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": nodes},
                state=RecordDict({"": ConfigRecord()}),
                run_config=run_config,
            )
            for node in range(1, nodes + 1)
        }

    @property
    def run(self) -> Run:
        return self._run

    def set_run(self, run: Run) -> None:
        self._run = run

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self._serve(message) for message in messages]

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return Message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages for the clients: each is called when its answer is pulled."""
        ids = []
        for message in messages:
            ids.append(str(next(self._ids)))
            message.metadata.__dict__["_message_id"] = ids[-1]  # as Flower's own grids do
            self._unanswered[ids[-1]] = message
            self._units.setdefault(self._unit(message), []).append(ids[-1])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answer to the first of these messages that has none yet."""
        first = next((key for key in message_ids if key in self._unanswered or key in self._answers), None)
        if first is None:
            return []
        if first in self._unanswered:
            unit = self._take(self._unit(self._unanswered[first]))
            replies = at_the_same_time([partial(self._serve, message) for message in unit.values()])
            self._answers |= zip(unit, replies, strict=True)
        return [self._answers.pop(first)]

    def answer(self, received: Message) -> Message:
        """The answer of the client that a message is to."""
        try:
            return self._app(received, self._contexts[received.metadata.dst_node_id])
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=received)

    def _unit(self, message: Message) -> Unit:
        about = message.metadata
        return about.message_type, about.group_id, (about.dst_node_id - 1) // self._together

    def _take(self, unit: Unit) -> dict[str, Message]:
        """The messages of a unit that have no answer yet, by id and sorted by node: from now on they have."""
        keys = [key for key in self._units.pop(unit) if key in self._unanswered]
        keys.sort(key=lambda key: self._unanswered[key].metadata.dst_node_id)
        return {key: self._unanswered.pop(key) for key in keys}

    def _serve(self, message: Message) -> Message:
        return self.answer(message_from_proto(message_to_proto(message)))


def run_in_process(overrides: Sequence[str]) -> Path:
    """Run a federation here and return its run directory. Raises what the ServerApp raises, and RunError
    where it came back without a complete run."""
    config = load(overrides)
    text = shlex.join([*overrides, *places(config)])
    run_config: UserConfig = {"overrides": text, "composed": to_yaml(config)}
    handed.cache_clear()  # the data may be others than those of a run before
    play(config, InProcessGrid(config.federation.nodes, run_config, together(config)), run_config)
    return config.run_dir


def together(config: RunConfig) -> int:
    """The nodes whose clients have a pass in common."""
    return max(1, cohort_size(config) // config.federation.clients_per_node)


def play(config: RunConfig, grid: Grid, run_config: UserConfig) -> None:
    """Run the ServerApp in this process on the nodes of a grid. Raises what it raises, and RunError where it
    came back without a complete run."""
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config)
    os.environ[SIMULATION] = "1"
    try:
        server_app(grid, context)
    finally:
        os.environ.pop(SIMULATION)
    if not is_complete(config.run_dir, last_file(config), config.federation.rounds):
        raise RunError(f"the ServerApp ended, but the run in {config.run_dir} is not recorded as completed")
