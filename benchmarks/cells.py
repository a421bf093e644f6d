"""One run of a federation in this process, measured: what the tables of methods are made of."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

CENTRAL = "central"  # in place of an override: one model, trained on all data in one place


@dataclass(frozen=True)
class Cell:
    """One run: what it is, its learning rate and seed, measured every ``every`` rounds and at the end."""

    words: tuple[str, ...]
    lr: float
    seed: int
    every: int = 0

    def overrides(self) -> list[str]:
        return [
            *[word for word in self.words if word != CENTRAL],
            f"train.lr={self.lr}", f"seed={self.seed}", f"evaluation.every={self.every}",
            "evaluation.before=false", "evaluation.local_only=false", "run.report=false",
        ]  # fmt: skip


def measure(cell: Cell) -> dict[str, Any]:
    """Run a cell here: accuracy by client at the end, on the test part and on the validation part, bytes
    of a client in a round, and by evaluated round the mean test accuracy with the bytes of all training
    messages until then."""
    import flwr.common  # noqa: F401  sets the level of its logger when it is imported

    warnings.filterwarnings("ignore")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    folder = tempfile.mkdtemp(prefix="fedsa-cell-")
    try:
        if CENTRAL in cell.words:
            return {**central(cell), "bytes_up": None, "bytes_down": None, "curve": []}
        return federated(cell, Path(folder) / "run")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def federated(cell: Cell, folder: Path) -> dict[str, Any]:
    from fedsa_lora.runs.inprocess import run_in_process
    from fedsa_lora.runs.reading import read_jsonl
    from fedsa_lora.runs.reevaluate import reevaluate

    run_in_process([*cell.overrides(), f"run.dir={folder}"])
    rows, rounds = read_jsonl(folder / "clients.jsonl"), read_jsonl(folder / "rounds.jsonl")
    fits = [row for row in rows if row["phase"] == "fit"]
    last = [row for row in rows if row["phase"] == "evaluate" and row["round"] == rounds[-1]["round"]]
    errors = [row["aggregation_error"] for row in rounds if row["aggregation_error"] is not None]
    return {
        "accuracy": {row["client"]: row["accuracy"] for row in last},
        "validation": {row.client: row.accuracy for row in reevaluate(folder, "validation")},
        "bytes_up": sum(row["bytes_up"] for row in fits) / len(fits),
        "bytes_down": sum(row["bytes_down"] for row in fits) / len(fits),
        "aggregation_error": sum(errors) / len(errors) if errors else None,
        "seconds": sum(row["fit_seconds"] for row in rounds),
        "curve": [
            {
                "round": row["round"],
                "accuracy": row["accuracy"],
                "bytes": sum(f["bytes_up"] + f["bytes_down"] for f in fits if f["round"] <= row["round"]),
            }
            for row in rounds
            if row["evaluated"]
        ],
    }


def central(cell: Cell) -> dict[str, dict[str, float]]:
    """One model trained on the union of the clients' data, with as many steps as all clients together."""
    from fedsa_lora import assemble
    from fedsa_lora.config import load
    from fedsa_lora.learning.training import predict, train
    from fedsa_lora.seeds import generator, torch_seed

    config = load(cell.overrides())
    bench = assemble.workbench(config)
    clients = config.task.describe().clients
    parts = {client: config.task.load_client(client) for client in clients}
    steps = config.federation.rounds * (config.train.steps or 0) * len(clients)
    bench.model.write(bench.initial)
    train(
        bench.model, config.task, union(data.train for data in parts.values()),
        replace(config.train, steps=steps),
        trained=config.split.alone()(bench.model.layout).trained,
        rng=generator(config.seed, "central"), torch_seed=torch_seed(config.seed, "central"),
    )  # fmt: skip
    measured: dict[str, dict[str, float]] = {"accuracy": {}, "validation": {}}
    for client, data in parts.items():
        for name, held_out in (("accuracy", data.test), ("validation", data.validation)):
            logits = predict(bench.model, config.task, held_out, config.train)
            measured[name][client] = config.task.evaluate(logits, held_out.labels)["accuracy"]
    return measured


def union(parts: Iterable[Any]) -> Any:
    import numpy as np

    from fedsa_lora.tasks.task import Examples

    parts = list(parts)
    features = {k: list(chain.from_iterable(p.features[k] for p in parts)) for k in parts[0].features}
    labels, lengths = (np.concatenate([getattr(p, name) for p in parts]) for name in ("labels", "lengths"))
    return Examples(features, labels, lengths)


def mean(result: dict[str, Any], part: str = "accuracy") -> float:
    """Mean accuracy over clients, on the test part or on that named."""
    return float(sum(result[part].values()) / len(result[part]))
