"""One run of a federation in this process, measured: what the tables of methods are made of."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

KEPT = Path(__file__).resolve().parent.parent / "build" / "cells"
CENTRAL = "central"  # in place of an override: one model, trained on all data in one place


@dataclass(frozen=True)
class Cell:
    """One run: what it is, its learning rate and seed, and which part of the clients' data is measured
    after every ``every`` rounds (0: at the end)."""

    words: tuple[str, ...]
    lr: float
    seed: int
    part: str
    every: int = 0

    def overrides(self) -> list[str]:
        return [
            *[word for word in self.words if word != CENTRAL],
            f"train.lr={self.lr}", f"seed={self.seed}", f"evaluation.part={self.part}",
            f"evaluation.every={self.every}", "evaluation.before=false", "evaluation.local_only=false",
            "run.report=false",
        ]  # fmt: skip


def measured_once(cell: Cell) -> dict[str, Any]:
    """What ``measure`` gives, kept in ``build/cells``: an interrupted comparison goes on where it was."""
    key = hashlib.sha256(json.dumps(asdict(cell), sort_keys=True).encode()).hexdigest()[:24]
    kept = KEPT / f"{key}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text())["result"])
    result = measure(cell)
    KEPT.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps({"cell": asdict(cell), "result": result}))
    unfinished.replace(kept)
    return result


def measure(cell: Cell) -> dict[str, Any]:
    """Run a cell here: accuracy by client at the end, bytes of a client in a round, and by evaluated
    round the mean accuracy with the bytes of all training messages until then."""
    import flwr.common  # noqa: F401  sets the level of its logger when it is imported

    warnings.filterwarnings("ignore")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    folder = tempfile.mkdtemp(prefix="fedsa-cell-")
    try:
        if CENTRAL in cell.words:
            return {"accuracy": central(cell), "bytes_up": None, "bytes_down": None, "curve": []}
        return federated(cell, Path(folder) / "run")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def federated(cell: Cell, folder: Path) -> dict[str, Any]:
    from fedsa_lora.runs.inprocess import run_in_process
    from fedsa_lora.runs.reading import read_jsonl

    run_in_process([*cell.overrides(), f"run.dir={folder}"])
    rows, rounds = read_jsonl(folder / "clients.jsonl"), read_jsonl(folder / "rounds.jsonl")
    fits = [row for row in rows if row["phase"] == "fit"]
    last = [row for row in rows if row["phase"] == "evaluate" and row["round"] == rounds[-1]["round"]]
    errors = [row["aggregation_error"] for row in rounds if row["aggregation_error"] is not None]
    return {
        "accuracy": {row["client"]: row["accuracy"] for row in last},
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


def central(cell: Cell) -> dict[str, float]:
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
    accuracy = {}
    for client, data in parts.items():
        held_out = data.held_out(cell.part)
        logits = predict(bench.model, config.task, held_out, config.train)
        accuracy[client] = config.task.evaluate(logits, held_out.labels)["accuracy"]
    return accuracy


def union(parts: Iterable[Any]) -> Any:
    import numpy as np

    from fedsa_lora.tasks.task import Examples

    parts = list(parts)
    features = {k: list(chain.from_iterable(p.features[k] for p in parts)) for k in parts[0].features}
    labels, lengths = (np.concatenate([getattr(p, name) for p in parts]) for name in ("labels", "lengths"))
    return Examples(features, labels, lengths)


def mean(result: dict[str, Any]) -> float:
    """Mean accuracy over clients."""
    return float(sum(result["accuracy"].values()) / len(result["accuracy"]))
