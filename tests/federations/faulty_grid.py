"""Clients that fail as planned: the grid of a run in one process, with nodes that one cannot rely on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message
from flwr.common import MessageTypeLegacy
from flwr.common.constant import ErrorCode

from fedsa_lora.exchange import wire
from fedsa_lora.runs import inprocess
from strategies.round import collection, naming, roster

# What a client does when it is asked (phase, client, round, how often before): nothing unusual (None),
# "raises" what no retry mends, "crashes" and so does not answer this once, is "silent", answers "twice",
# or "leaves" for good.
Plan = Callable[[str, str, int, int], str | None]
ERRORS = {
    "raises": Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "OSError: no such device"),
    "crashes": Error(ErrorCode.CLIENT_APP_CRASHED, "its process was killed"),
    "leaves": Error(ErrorCode.NODE_UNAVAILABLE, "its node is gone"),
}


class Clock:
    """A time that passes only where someone waits for it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FaultyGrid(inprocess.InProcessGrid):
    """The clients of a run, which fail as planned; those ``missing`` are never there, and the
    ``silent`` do not even say who they are."""

    def __init__(
        self,
        plan: Plan,
        missing: Collection[str],
        silent: Collection[str],
        clients: int,
        run_config: dict[str, Any],
        together: int,
    ) -> None:
        super().__init__(clients, run_config, together)
        self.plan, self.asked = plan, Counter[tuple[str, str, int]]()
        self.gone, self.silent = set(missing), silent

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if str(node - 1) not in self.gone]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for key in message_ids:
            if (message := self._unanswered.get(key)) is None:
                continue
            if message.metadata.message_type == MessageTypeLegacy.GET_PROPERTIES:
                if str(message.metadata.dst_node_id - 1) in self.silent:
                    continue
                return [self._serve(self._unanswered.pop(key))]
            asked = self._of(message)
            act = self.plan(*asked, self.asked[asked])
            if act == "silent":
                continue
            self.asked[asked] += 1
            del self._unanswered[key]
            if act in ERRORS:
                self.gone |= {asked[1]} if act == "leaves" else set()
                return [Message(ERRORS[act], reply_to=message)]
            return [self._serve(message) for _ in range(2 if act == "twice" else 1)]
        return []

    def _of(self, message: Message) -> tuple[str, str, int]:
        (config,) = (
            record for name, record in message.content.config_records.items() if name.endswith(".config")
        )
        phase = {"train": "fit"}.get(message.metadata.message_type, message.metadata.message_type)
        round_ = json.loads(str(config[wire.KEY]))["round"]
        return phase, str(message.metadata.dst_node_id - 1), int(round_)


def run_with(
    patch: pytest.MonkeyPatch,
    plan: Plan,
    words: Iterable[str],
    folder: Path,
    missing: Collection[str] = (),
    silent: Collection[str] = (),
) -> Path:
    """A smoke run whose clients follow a plan, on a clock of its own. Raises what the run raises."""
    patch.setattr(inprocess, "InProcessGrid", partial(FaultyGrid, plan, missing, silent))
    clock = Clock()
    for module in (collection, roster, naming):
        patch.setattr(module, "time", clock)
    quiet = ("evaluation.local_only=false", "evaluation.before=false")
    return inprocess.run_in_process(
        ["experiment=smoke", "run.report=false", *quiet, *words, f"run.dir={folder}"]
    )
