"""Measures a finished run of a candidate, for an advice."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client.model import majority as most_frequent
from fedsa_lora.compare.advice import SHARES
from fedsa_lora.compare.measure import measured
from fedsa_lora.config.compose import read_config
from fedsa_lora.exchange.arrays import cut
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.reading import Row
from fedsa_lora.server.build import skeleton
from strategies.plans.importance import disagreement
from strategies.rules.updates import Update


def probed(run_dir: Path) -> Row:
    """Measures a finished probe, with the agreement of clients where they trained alone, and the
    majority class on the part that candidates are compared by."""
    return {**measured(run_dir), "agreement": agreement(run_dir), "majority": majority(run_dir) or None}


def majority(run_dir: Path) -> dict[str, float]:
    """The primary measure of always predicting a client's most frequent class, on its validation part, by
    client; those without one are left out, and all where answers are no classes."""
    task = read_config(run_dir).task
    if not task.labels():
        return {}
    found = {}
    for name in task.describe().clients:
        data = task.load_client(name)
        if len(held_out := data.held_out("validation")):
            found[name] = most_frequent(task, data.train, held_out)
    return found


def agreement(run_dir: Path) -> dict[str, float]:
    """By role A and B, the mean cosine over pairs of clients, and over tensors, of what a run that shared
    nothing has changed; empty for a run that shared something."""
    config = read_config(run_dir)
    model = skeleton(config)
    if config.split(model.layout).shared:
        return {}
    factors = model.layout.select(spec.name for spec in model.layout if spec.role in SHARES.values())
    exporter = Exporter(config, RunDirectory(run_dir, config), model)
    start = factors.pack(cut(model.initial(config.seed, config.head.row_norm), factors))
    ends = {client: factors.pack(cut(exporter.tensors(client), factors)) for client in exporter.clients()}
    names = frozenset(factors.names)
    apart = disagreement(factors, [[Update(c, 0, names, None, end - start) for c, end in ends.items()]])
    cosines: dict[str, list[float]] = {}
    for spec in factors:
        if spec.name in apart:
            cosines.setdefault(spec.role, []).append(1 - 2 * apart[spec.name])
    return {role: fmean(values) for role, values in cosines.items()}
