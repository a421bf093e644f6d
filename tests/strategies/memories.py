"""Make `tests/golden/memories.json`: what strategies wrote into checkpoints, and how their runs went on.

`python tests/strategies/memories.py` overwrites it with what this version writes. Do so only where
checkpoints of before cannot be read any longer, and say in the commit why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import FedAvg, FedAvgM
from flwr.supercore.task_identity import TaskIdentity
from server_side import EVERYONE, Server, some_updates

from fedsa_lora.exchange.adaptive import Importance, LeastVariance
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.selection import TopK
from fedsa_lora.exchange.split import RoleSplit
from strategies import AdaptiveFedSA, Attendance, Bounds, ClusteredFedSA
from strategies.plans.grouping import Clusters

GOLDEN = Path(__file__).parents[1] / "golden" / "memories.json"
BEFORE, AFTER = (1, 2, 3, 4), (5, 6, 7)
A = [f"encoder.layer.{i}.query.lora_A.weight" for i in range(4)]
LAYOUT = Layout(
    (
        *(TensorSpec(name, (2, 3), "A", name.removesuffix(".lora_A.weight")) for name in A),
        TensorSpec("classifier.weight", (2, 4), "head", "classifier"),
    )
)
START = np.arange(LAYOUT.size, dtype=np.float32)
BEGIN = {"initial_parameters": ndarrays_to_parameters([START])}
SHARE_A = RoleSplit(A="shared", B="local", head="shared")
SCENARIOS: dict[str, Callable[[], dict[str, Any]]] = {
    "importance": lambda: {
        "kind": AdaptiveFedSA,
        "split": Importance(head="shared", ema=0.3, threshold="heterogeneity", hysteresis=2),
    },
    "importance by client": lambda: {
        "kind": AdaptiveFedSA, "split": Importance(head="shared", ema=0.3, scope="client"),
    },
    "least variance": lambda: {
        "kind": AdaptiveFedSA, "split": LeastVariance(count=2, again=2, head="shared"),
    },
    "groups": lambda: {
        "kind": ClusteredFedSA, "split": SHARE_A, "clusters": Clusters(groups=2, after=2, ema=0.5),
    },
    "coded, with momentum, totals and absences": lambda: {
        "split": SHARE_A, "inner": FedAvgM(server_momentum=0.9, **EVERYONE, **BEGIN),
        "downlink": TopK(ratio=0.3), "tell_total": True, "bounds": Bounds(max_rejections=0.9),
        "attendance": Attendance(max_skipped=3, exclude_after=1, exclude_rounds=1),
    },
}  # fmt: skip
SENT = ("shared", "joining", "carried", "base", "codec", "total", "digest")  # of a header


def server(scenario: str) -> Server:
    return Server(
        LAYOUT, 5, start=START, min_results=0.5, **{"inner": FedAvg(**EVERYONE)} | SCENARIOS[scenario]()
    )


def play(server: Server, rounds) -> list[dict[str, Any]]:
    """Rounds in which client 4 answers every second time, and one with too few where that may be. After each
    the shared values, and a digest of all that was sent."""
    found = []
    for round_ in rounds:
        messages = server.ask(round_)
        sent = digest(server, messages)
        absent = set() if round_ % 2 else {"4"}
        if server.strategy.attendance.max_skipped > 1 and round_ == 3:
            absent = set("1234")
        results = {}
        for client in sorted(messages.keys() - absent):
            size = LAYOUT.select(LAYOUT.named(server.asked[client].shared)).size
            update = some_updates(1, size, 10 * round_ + int(client))[0]
            way = -3 if int(client) % 2 else 3
            rng = np.random.default_rng([round_, int(client)])
            told = {}
            if isinstance(server.strategy.split, Importance):
                told = {"scores": tuple(rng.random(4).tolist())}
            results[client] = server.upload(client, update + way, 5 + int(client), **told)
        shared = server.take(results, round_=round_)
        found.append({"shared": shared.tolist(), "sent": sent})
    return found


def digest(server: Server, messages) -> str:
    sent = hashlib.sha256()
    for client, ins in sorted(messages.items()):
        header = server.asked[client]
        sent.update(str([client, *(getattr(header, name) for name in SENT)]).encode())
        for tensor in ins.parameters.tensors:
            sent.update(tensor)
    return sent.hexdigest()[:16]


def main() -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, 1)  # messages name the run that they are of
    found = {}
    for scenario in SCENARIOS:
        whole = server(scenario)
        play(whole, BEFORE)
        _, vector, memory = whole.notes.checkpoints[-1]
        found[scenario] = {
            "vector": vector.tolist(),
            "memory": {name: [str(a.dtype), a.tolist()] for name, a in memory.items()},
            "after": play(whole, AFTER),
        }
    GOLDEN.write_text(json.dumps({"made_by": "tests/strategies/memories.py", "found": found}) + "\n")


if __name__ == "__main__":
    main()
