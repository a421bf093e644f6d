"""A strategy with nodes that know no more than their names: tests play the clients by hand."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.common import Code, EvaluateIns, FitIns, FitRes, Status, ndarrays_to_parameters
from flwr.server import SimpleClientManager
from flwr.server.strategy import FedAvg
from named_nodes import Named

from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, TensorSpec, Vector
from fedsa_lora.exchange.split import RoleSplit
from fedsa_lora.exchange.vector import vector_digest
from strategies import Evaluation, FedSA, Roster

OK = Status(Code.OK, "")
LAYOUT = Layout(
    (TensorSpec("x.lora_A.weight", (2, 3), "A", "x"), TensorSpec("y.lora_A.weight", (1, 4), "A", "y"))
)
SHARE_A = RoleSplit(A="shared", B="local")
SHARE_AB = RoleSplit(A="shared", B="shared", allow=("A", "B"))
EVERYONE = {"min_fit_clients": 1, "min_available_clients": 1, "min_evaluate_clients": 1}


class Node(Named):
    """A node that only knows its client's name."""

    def __init__(self, cid: str, client: str) -> None:
        super().__init__(cid, {"client": client})
        self.client = client


class Notes:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.clients, self.rounds, self.checkpoints = [], [], []

    def client(self, row):
        self.clients.append(row)

    def round(self, row):
        self.rounds.append(row)

    def checkpoint(self, round_, layout, vector, memory):
        self.checkpoints.append((round_, vector.copy(), memory))


class Server:
    """A strategy, its nodes, whose ids do not follow their names, and what it asked of them last."""

    def __init__(
        self,
        layout: Layout = LAYOUT,
        clients: int = 3,
        kind: type[FedSA] = FedSA,
        inner: Any = None,
        start: Vector | None = None,
        every: int = 0,
        rounds: int = 99,
        recorder: Any = None,
        **arguments: Any,
    ) -> None:
        self.notes, self.manager, self.layout = Notes(), SimpleClientManager(), layout
        self.nodes = {str(i): Node(f"{900 - 7 * i}", str(i)) for i in range(clients)}
        for node in self.nodes.values():
            self.manager.register(node)
        self.start = np.arange(layout.size, dtype=np.float32) if start is None else start
        self.strategy = kind(
            inner or FedAvg(**EVERYONE),
            layout,
            self.start,
            roster=Roster(0, clients, wait_seconds=1),
            evaluation=Evaluation(rounds=rounds, every=every),
            recorder=recorder or self.notes,
            **({"split": SHARE_A} | arguments),
        )
        self.asked: dict[str, wire.BroadcastHeader] = {}

    def ask(self, round_: int = 1) -> dict[str, FitIns]:
        """The broadcasts of a round, by client."""
        parameters = ndarrays_to_parameters([self.strategy.common])
        return self._note(self.strategy.configure_fit(round_, parameters, self.manager))

    def ask_to_evaluate(self, round_: int = 1) -> dict[str, EvaluateIns]:
        parameters = ndarrays_to_parameters([self.strategy.common])
        return self._note(self.strategy.configure_evaluate(round_, parameters, self.manager))

    def upload(self, client: str, update: Vector, examples: int = 10, /, **changes: Any) -> FitRes:
        """What a client answers whose difference, in the tensors that it was asked for, is ``update``."""
        codec, asked = self.strategy.codec, self.asked[client]
        payload = changes.pop("payload", None)
        if payload is None:
            payload = codec.encode(np.asarray(update, np.float32), np.random.default_rng(int(client)))
        header = wire.UploadHeader(
            client=client, round=asked.round, layout=asked.layout, digest=vector_digest(payload),
            examples=examples, measured=10, shared=asked.shared, codec=codec.name,
            private_before="b" * 16, private_after=f"{int(client):016x}",
            report={"loss": 1.0} | ({"accuracy_before": 0.5} if asked.measure_before else {}),
        )  # fmt: skip
        header = replace(header, **changes)
        return FitRes(OK, ndarrays_to_parameters([payload]), examples, wire.write_header(header))

    def take(self, results: Mapping[str, FitRes], order: list[str] | None = None, round_: int = 1) -> Vector:
        """Aggregate what clients answered, in some order of arrival. The new shared vector."""
        arrived = [(self.nodes[client], results[client]) for client in order or results]
        self.strategy.aggregate_fit(round_, arrived, [])
        return self.strategy.common

    def play(self, round_: int, updates: Mapping[str, Vector], **changes: Any) -> dict[str, FitIns]:
        """One whole round in which these clients answer. The broadcasts that it began with."""
        sent = self.ask(round_)
        self.take({c: self.upload(c, u, **changes) for c, u in updates.items()}, round_=round_)
        return sent

    def _note(self, asked: list[tuple[Node, Any]]) -> dict[str, Any]:
        found = {node.client: ins for node, ins in asked}
        self.asked = {c: wire.read_header(ins.config, wire.BroadcastHeader) for c, ins in found.items()}
        return found


def some_updates(clients: int = 3, size: int = LAYOUT.size, seed: int = 3) -> list[Vector]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=size).astype(np.float32) for _ in range(clients)]
