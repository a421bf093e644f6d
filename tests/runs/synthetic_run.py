"""Write a made-up run directory of any size, as a run would have left it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedsa_lora.runs.measures import interval, spread

REASON = "TrainingError: the loss of client 3 is not finite in round 5"


def write_run(
    folder: Path, clients: int = 10, labels: tuple[str, ...] | int = 7, rounds: int = 12, seed: int = 3
) -> Path:
    """A completed run in which the last of several clients is harmed and client 3 fails once."""
    rng = np.random.default_rng(seed)
    names = tuple(f"intent_{n:03d}_of_a_user" for n in range(labels)) if isinstance(labels, int) else labels
    majority = rng.uniform(0.15, 0.3, clients)
    alone = rng.uniform(0.55, 0.8, clients)
    final = np.clip(alone + rng.normal(0.07, 0.06, clients), 0, 1)
    if clients > 1:
        final[-1] = alone[-1] - 0.043
    progress = 1 - np.exp(-np.arange(1, rounds + 1) / 3)
    curve = majority + (final - majority) * (progress / progress[-1])[:, None]  # (rounds, clients)
    folder.mkdir(parents=True, exist_ok=True)
    _start(folder, "completed", None)
    shares = {str(k): _share(rng, len(names)) for k in range(clients)}
    notes = ["client 0: 12 test examples, fewer than 20: its accuracy is coarse"]
    _json(folder / "partition.json", {"labels": list(names), "clients": shares, "notes": notes})
    _lines(folder / "clients.jsonl", _client_rows(curve, majority, alone))
    _lines(folder / "rounds.jsonl", [_round_row(n, row) for n, row in enumerate(curve, 1)])
    _json(folder / "summary.json", _summary(final, alone, majority, rounds))
    return folder


def write_failed_run(folder: Path, reason: str = "DataError: no data at data/mine.csv") -> Path:
    """A run that failed before its first round."""
    folder.mkdir(parents=True, exist_ok=True)
    _start(folder, "failed", reason)
    (folder / "environment.json").unlink()
    return folder


def _start(folder: Path, state: str, reason: str | None) -> None:
    text = "experiment: quickstart\nseed: 0\nlora:\n  r: 8\nsplit: share_a\n"
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    times = {"started": "2026-03-01T10:00:00+00:00", "ended": "2026-03-01T10:02:14+00:00"}
    _json(folder / "status.json", {"state": state, "reason": reason, **times})
    environment = {
        "fedsa_lora": "0.1.0",
        "python": "3.11.9",
        "flwr": "1.41.0",
        "torch": "2.6.0",
        "device": "cpu",
    }
    _json(folder / "environment.json", {**environment, "command": "fedsa-lora run seed=0"})


def _share(rng: np.random.Generator, classes: int) -> dict[str, Any]:
    train = int(rng.integers(60, 101))
    counts = rng.multinomial(train, rng.dirichlet(np.full(classes, 0.3)))
    return {"train": train, "validation": 30, "test": 70, "classes": counts.tolist()}


def _client_rows(curve: np.ndarray, majority: np.ndarray, alone: np.ndarray) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    bytes_sent = {"bytes_up": 147_900, "bytes_down": 147_900}
    for n, accuracies in enumerate(curve, 1):
        for k, accuracy in enumerate(accuracies):
            fit = {"round": n, "phase": "fit", "client": str(k), "examples": 60, "loss": 1.2 / n, "steps": 5}
            if (k, n) != (3, 5):
                rows.append({**fit, **bytes_sent, "accuracy_before": accuracy - 0.03})
            shown = {"round": n, "phase": "evaluate", "client": str(k), "examples": 70, "accuracy": accuracy}
            last = {"local_only": alone[k]} if n == len(curve) else {}
            rows.append({**shown, "loss": 0.9 / n, **bytes_sent, "majority": majority[k], **last})
    return rows


def _round_row(n: int, accuracies: np.ndarray) -> dict[str, Any]:
    clients = len(accuracies)
    sent = {"bytes_up": 147_900 * clients, "bytes_down": 295_800 * clients}
    accuracy = {"accuracy": accuracies.mean(), "accuracy_weighted": accuracies.mean() + 0.002}
    fits = {
        "round": n,
        "fit_clients": clients,
        "fit_failures": int(n == 5),
        "remarks": [{"client": "3", "kind": "error", "reason": REASON}] * (n == 5),
        "seconds": 8.1,
        "fit_seconds": 7.0,
    }
    rest = {"accuracy_worst": accuracies.min(), "accuracy_before": accuracies.mean() - 0.03}
    return {**fits, **sent, "loss": 1.2 / n, "evaluated": True, **accuracy, **rest, "global_accuracy": None}


def _over_clients(values: np.ndarray) -> dict[str, Any]:
    by_client = {str(client): float(value) for client, value in enumerate(values)}
    return asdict(spread(by_client)) | {"weighted": float(values.mean()) + 0.002}


def _summary(final: np.ndarray, alone: np.ndarray, majority: np.ndarray, rounds: int) -> dict[str, Any]:
    clients = len(final)
    return {
        "name": "quickstart",
        "title": "Ten clients, one model, labels that differ",
        "description": "SNIPS intents over ten clients whose labels mean different things.",
        "rounds": rounds,
        "clients": clients,
        "split": {"A": "shared", "B": "local", "head": "frozen", "base": "frozen"},
        "personalised": _over_clients(final),
        "before_aggregation": {"mean": float(final.mean() - 0.03)},
        "local_only": _over_clients(alone),
        "majority": _over_clients(majority),
        "global": None,
        "gain_over_local": float(final.mean() - alone.mean()),
        "gain_over_majority": float(final.mean() - majority.mean()),
        "gain_interval": None if clients == 1 else list(interval(final - alone)),
        "clients_compared": clients,
        "measured": clients,
        "unmeasured": [],
        "part": "test",
        "clients_harmed": int((final < alone).sum()),
        "share_harmed": float((final < alone).mean()),
        "target": {"accuracy": float(alone.mean()), "rounds": 7, "bytes": 31_059_000, "seconds": 49.0},
        "bytes_up": 147_900 * clients * rounds,
        "bytes_down": 295_800 * clients * rounds,
        "bytes_up_per_client_round": 147_900,
        "bytes_up_share_ab": 295_400,
        "seconds": 134.2,
        "parameters": {"base": 22_713_216, "A": 36_864, "B": 36_864, "head": 2_695, "shared": 36_864},
        "proof": {
            "messages": 2 * clients * rounds,
            "bytes_searched": 147_900 * 2 * clients * rounds,
            "private_values": 110_592,
            "matches": 0,
            "chain_breaks": 0,
            "distinct_b": True,
        },
    }


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, default=float), encoding="utf-8")


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, default=float) + "\n" for row in rows), encoding="utf-8")
