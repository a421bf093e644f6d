"""The figures of a run, from the rows that it recorded."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from fedsa_lora.client.egress import searches
from fedsa_lora.decision import recorded
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.federation import PASSED
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.runs import measures
from fedsa_lora.runs.outcomes import CLIPPED, failures, in_order
from fedsa_lora.runs.reading import Row, read_jsonl
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.backdoor import Backdoor


def summarise(config: RunConfig, run_dir: Path, model: AdapterModel) -> dict[str, Any]:
    """The primary measure over clients with its references, bytes, seconds, parameters and the proof.

    ``model`` is needed for its names and shapes only. The measure is that of the last evaluated
    round, personalised and after aggregation, over the clients that were measured; wherever clients are
    weighted, it is by the examples that they were measured on.
    """
    rounds = read_jsonl(run_dir / "rounds.jsonl")
    clients = read_jsonl(run_dir / "clients.jsonl")
    fits = [row for row in clients if row["phase"] == "fit"]
    last = rounds[-1]["round"]
    final = [row for row in clients if row["phase"] == "evaluate" and row["round"] == last]
    measured = _measured(config, rounds, [row for row in fits if row["round"] == last], final)
    alone = measured["local_only"]
    return {
        "name": config.name,
        "title": config.title,
        "description": config.description,
        "warning": PASSED if config.federation.b_passing else None,
        **_participants(config, rounds, final),
        **_course(config, rounds),
        "decisions": recorded(run_dir),
        **measured,
        **_gains(config, final),
        "rejected": remarked(rounds, "rejected"),
        CLIPPED: remarked(rounds, CLIPPED),
        "target": to_target(rounds, fits, config.task.measures[0], alone["mean"] if alone else None),
        **_traffic(config, rounds, fits, model),
        "seconds": sum(row["seconds"] for row in rounds),
        "parameters": parameter_counts(config, model),
        "proof": proof(config.store_dir, fits, salted=config.federation.superlink is not None),
    }


def _participants(config: RunConfig, rounds: Sequence[Row], final: Sequence[Row]) -> dict[str, Any]:
    """The number of rounds and clients, and the clients that were measured in the last evaluation."""
    measured = _by_client(final, config.task.measures[0].name)
    return {
        "rounds": len(rounds),
        "clients": config.federation.clients,
        "measured": len(measured),
        "unmeasured": in_order(row["client"] for row in final if row["client"] not in measured),
        "part": config.evaluation.part,
    }


def _course(config: RunConfig, rounds: Sequence[Row]) -> dict[str, Any]:
    """Failures, skipped rounds and excluded clients, and what was shared in which coding."""
    return {
        "failures": sum(len(failures(row)) for row in rounds),
        "skipped_rounds": sum(bool(row.get("skipped")) for row in rounds),
        "excluded_clients": sorted({client for row in rounds for client in row.get("excluded", ())}),
        "split": config.split.words(),
        "codec": config.codec.name,
        "aggregation_error": _last(rounds, "aggregation_error"),
    }


def _measured(
    config: RunConfig, rounds: Sequence[Row], fits: Sequence[Row], final: Sequence[Row]
) -> dict[str, Any]:
    """The primary measure over clients, and that of its references; ``fits`` are of the last round."""
    primary = config.task.measures[0]
    higher = primary.higher_is_better
    before = [row for row in fits if primary.before in row]
    return {
        "personalised": over_clients(final, primary.name, higher),
        "best": best_round(rounds, primary),
        "before_aggregation": over_clients(before, primary.before, higher),
        "local_only": over_clients(final, "local_only", higher),
        "majority": over_clients(final, "majority", higher),
        "global": over_clients(final, primary.of_global, higher),
        "attack": attacked(config.attack, final, primary),
    }


def _gains(config: RunConfig, final: Sequence[Row]) -> dict[str, Any]:
    """Gains of clients over training alone and over their most frequent class, and how many of them lose."""
    primary = config.task.measures[0]
    higher = primary.higher_is_better
    ours, alone = _by_client(final, primary.name), _by_client(final, "local_only")
    gains = measures.gains(ours, alone, higher)
    harmed = [measures.worse(gain, alone[name]) for name, gain in gains.items()]
    above = measures.gains(ours, _by_client(final, "majority"), higher)
    return {
        "gain_over_local": measures.mean_known(gains.values()),
        "gain_interval": interval_over(gains),
        "gain_over_majority": measures.mean_known(above.values()),
        "clients_compared": len(gains),
        "clients_harmed": sum(harmed) if gains else None,
        "share_harmed": measures.harmed(ours, alone, higher),
    }


def _traffic(
    config: RunConfig, rounds: Sequence[Row], fits: Sequence[Row], model: AdapterModel
) -> dict[str, Any]:
    """Bytes both ways, those of a mean upload, and those of one that shares A and B at 4 bytes a value, which
    nothing can be compared with where steps send states as well."""
    parameters, steps = parameter_counts(config, model), step_bytes(rounds)
    heads = model.layout.select(config.split(model.layout).shared).count("head")
    share_ab = 4 * (parameters["A"] + parameters["B"] + heads)
    return {
        "bytes_up": sum(row["bytes_up"] for row in rounds),
        "bytes_down": sum(row["bytes_down"] for row in rounds),
        "bytes_up_per_client_round": float(np.mean([row["bytes_up"] for row in fits])),
        "bytes_up_share_ab": None if steps else share_ab,
        "step_bytes": steps,
    }


def step_bytes(rounds: Sequence[Row]) -> dict[str, int]:
    """The bytes of the messages between the parts of a model that is cut, by what they are; none else."""
    total: Counter[str] = Counter()
    for row in rounds:
        for phase in ("fit", "evaluate"):
            total.update(row.get(f"{phase}_step_bytes") or {})
    return dict(sorted(total.items()))


def attacked(attack: Backdoor | None, final: Sequence[Row], primary: Measure) -> dict[str, Any] | None:
    """Result of an attack, on the mean over the clients that had no part in it, and their primary measure
    without its trigger; None without an attack."""
    if attack is None:
        return None
    success, clean = (
        {client: value for client, value in _by_client(final, key).items() if client not in attack.names}
        for key in ("attack_success", primary.name)
    )
    return {
        "clients": sorted(attack.clients),
        "target": attack.target,
        "honest": len(success),
        "success": measures.mean_known(success.values()),
        "clean": measures.mean_known(clean.values()),
    }


def interval_over(gains: Mapping[str, float]) -> list[float] | None:
    """The ends of the paired interval over clients around their mean gain; None where too few have one for
    any to be known."""
    if not gains:
        return None
    ends = measures.interval(list(gains.values()))
    return list(ends) if math.isfinite(ends[0]) else None


def _last(rounds: Sequence[Row], key: str) -> float | None:
    """The value of the newest round that has one."""
    return next((row[key] for row in reversed(rounds) if row.get(key) is not None), None)


def remarked(rounds: Sequence[Row], kind: str) -> dict[str, int]:
    """Counts each client's answers of a kind; clients without one are left out."""
    remarks = (remark for row in rounds for remark in row.get("remarks") or [])
    clients = Counter(remark["client"] for remark in remarks if remark["kind"] == kind)
    return {client: clients[client] for client in in_order(clients)}


def best_round(rounds: Sequence[Row], primary: Measure) -> dict[str, Any] | None:
    """The evaluated round with the best mean over clients, the earliest of equals. It is chosen by what it is
    measured on, as published figures often are, so it flatters; None where no round was evaluated."""
    evaluated = [row for row in rounds if row.get(primary.name) is not None]
    if not evaluated:
        return None
    best = max(evaluated, key=lambda row: primary.merit(row[primary.name]))
    return {"round": best["round"], "mean": best[primary.name]}


def over_clients(rows: Sequence[Row], key: str, higher_is_better: bool = True) -> dict[str, Any] | None:
    """The spread over clients, weighted by the examples that they were measured on; None without values."""
    values = _by_client(rows, key)
    if not values:
        return None
    return asdict(measures.spread(values, _by_client(rows, "measured"), higher_is_better))


def _by_client(rows: Sequence[Row], key: str) -> dict[str, float]:
    return {row["client"]: row[key] for row in rows if row.get(key) is not None}


def training_bytes(rounds: Sequence[Row], fits: Sequence[Row]) -> list[int]:
    """Bytes of all training messages, both ways, until the end of each round."""
    sent: dict[int, int] = defaultdict(int)
    for row in fits:
        sent[row["round"]] += (row.get("bytes_up") or 0) + (row.get("bytes_down") or 0)
    return list(accumulate(sent[row["round"]] for row in rounds))


def to_target(
    rounds: Sequence[Row], fits: Sequence[Row], primary: Measure, alone: float | None
) -> dict[str, Any] | None:
    """Cost until the mean over clients first reached that of training alone; None without one.

    ``bytes`` and ``seconds`` are those of training until then, both ways and of all clients, without
    what was measured in between. All are None where the target was never reached.
    """
    if alone is None:
        return None
    spent = {
        "rounds": [row["round"] for row in rounds],
        "bytes": training_bytes(rounds, fits),
        "seconds": accumulate(row["fit_seconds"] for row in rounds),
    }
    reached = [row.get(primary.name) for row in rounds]
    found: dict[str, Any] = {primary.name: alone}
    for name, so_far in spent.items():
        curve = [(n, value) for n, value in zip(so_far, reached, strict=True) if value is not None]
        found[name] = measures.first_at(curve, alone, primary.higher_is_better)
    return found


def parameter_counts(config: RunConfig, model: AdapterModel) -> dict[str, int]:
    """Parameters by role of what a client holds, and how many may be shared."""
    held = config.at_client(model.layout)
    return model.counts(config.holds) | {"shared": held.select(config.split(held).shared).size}


def proof(store_dir: Path, fits: Sequence[Row], salted: bool = False) -> dict[str, Any]:
    """Evidence that private tensors stayed where they belong.

    ``chain_breaks``: fits that did not start from the private state that the same client had
    after its fit before. ``distinct_b``: no two clients ended with the same private state; None where their
    digests are ``salted``, as those of nodes are, and cannot be compared between clients. The
    searches of outgoing messages are counted where the clients' stores can be read.
    """
    last: dict[str, str] = {}
    breaks = 0
    for row in sorted(fits, key=lambda row: int(row["round"])):
        breaks += row["client"] in last and row["private_before"] != last[row["client"]]
        last[row["client"]] = row["private_after"]
    logs = [log for folder in sorted(store_dir.glob("*")) for log in searches(folder)]
    searched = [row for log in logs for row in read_jsonl(log)]
    return {
        "messages": len(searched),
        "bytes_searched": sum(row["bytes"] for row in searched),
        "private_values": max((row["private_values"] for row in searched), default=0),
        "matches": sum(row["matches"] for row in searched),
        "chain_breaks": breaks,
        "distinct_b": None if salted else len(set(last.values())) == len(last),
    }
