"""Split learning where the process of a client dies: what is asked again, and what is dropped."""

import gc
import weakref
from collections import Counter
from typing import ClassVar

import pytest
from faulty_grid import Clock
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from remarks import failures_of
from test_methods import rows
from test_resume import assert_same_run

from fedsa_lora import client_app
from fedsa_lora.runs import inprocess
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.server.trunk import Trunk
from strategies.round import collection

KILLED = Error(ErrorCode.CLIENT_APP_CRASHED, "its process was killed")
BRIEF = (
    "experiment=split/tiny", "federation.clients=2", "federation.rounds=2", "train.steps=2",
    "train.batch_size=2", "run.report=false", "federation.train_examples=[6,6]",
    "federation.test_examples=4", "evaluation.every=2", "run.keep_generations=9",
)  # fmt: skip


class Mortal(inprocess.InProcessGrid):
    """Nodes whose process dies once at each of the given messages, (node, number), before it has answered or
    after; another takes its place, which has nothing in memory."""

    deaths: ClassVar[dict[tuple[int, int], str]] = {}

    def __init__(self, *terms) -> None:
        super().__init__(*terms)
        self._served = Counter()

    def answer(self, received: Message) -> Message:
        node = received.metadata.dst_node_id
        died = self.deaths.pop((node, self._served[node]), "")
        if died != "before":
            answer = super().answer(received)
        if died:
            client_app._resident.cache_clear()
            return Message(KILLED, reply_to=received)
        self._served[node] += 1
        return answer


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Make a run in which processes die."""

    def make(deaths, *words):
        monkeypatch.setattr(inprocess, "InProcessGrid", Mortal)
        monkeypatch.setattr(Mortal, "deaths", deaths)
        monkeypatch.setattr(collection, "time", Clock())
        return run_in_process([*BRIEF, *words, f"run.dir={tmp_path / 'run'}"])

    return make


def test_a_client_that_dies_at_a_step_is_asked_again_to_the_same_bits(run, tmp_path):
    """Message 0 asks its name; 1 to 5 are those of round 1, of which 1 opens it and 5 ends it."""
    whole = run_in_process([*BRIEF, f"run.dir={tmp_path / 'whole'}"])
    deaths = {(1, 1): "after", (1, 3): "before", (2, 4): "after", (2, 5): "after", (1, 11): "after"}
    found = run(deaths, "federation.retries=1")
    assert_same_run(found, whole)
    assert deaths == {}, "all of them came"


def test_a_client_that_is_not_asked_again_is_out_of_its_round_and_its_graphs_are_dropped(run, monkeypatch):
    begin, held = Trunk.begin, []

    def watched(trunk, *terms, **words):
        graphs = [pair for exchange in trunk._open.values() for pair in exchange.graphs]
        held.extend(weakref.ref(states) for pair in graphs for states in pair)
        del graphs
        begin(trunk, *terms, **words)
        gc.collect()
        assert [ref for ref in held if ref() is not None] == []

    monkeypatch.setattr(Trunk, "begin", watched)
    path = run({(2, 2): "before"}, "federation.retries=0")
    first, second = rows(path)
    assert failures_of(first) == ["client 1: its process was killed"]
    assert [row["fit_clients"] for row in (first, second)] == [1, 2]
    assert len(held) == 2, "h1 and h2 of the step that it began"
    assert len(first["step_losses"]) == len(second["step_losses"]) == 2
