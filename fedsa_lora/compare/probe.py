"""Runs of the candidates for an advice, on a user's own data."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console

from fedsa_lora import assemble
from fedsa_lora.compare.advice import ALONE, SHARES, SOFT, Evidence, Probe
from fedsa_lora.compare.comparison import Comparison
from fedsa_lora.compare.grid import Grid
from fedsa_lora.compare.measure import measured
from fedsa_lora.compare.record import Record
from fedsa_lora.compare.search import Search
from fedsa_lora.config import load, read_config
from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.exchange.arrays import cut
from fedsa_lora.learning.adapters import initial_state
from fedsa_lora.runs.export import Exporter
from fedsa_lora.runs.reading import Row
from fedsa_lora.runs.rundir import RunDirectory
from strategies.importance import disagreement
from strategies.updates import Update

CANDIDATES = {
    ALONE: "split=local_only head=local",
    "share A": "split=share_a head=local",
    "share B": "split=share_b head=local",
    "share A and B, own head": "split=share_ab head=local",
    "FedIT (share A and B)": "split=share_ab head=shared",
    SOFT: "split=soft head=soft",
}
YOURS = "yours"
RATES = [1.5e-3, 4e-3, 1e-2]
HELD_OUT = 30  # examples of a client, where the user's words set none aside


def probe(grid: Grid, folder: Path, processes: int, console: Console) -> Evidence:
    """Run the candidates of a ``probe_grid``; what is in ``folder`` already is not run again.

    Raises ConfigError for words that do not go with a candidate, RunError where a run failed.
    """
    comparison = Comparison.to_run(grid, "advise", folder)
    comparison.run(processes, console, resume=True, measure=probed)
    if failures := comparison.failures():
        raise RunError("a probe failed, so there is nothing to go by: " + "; ".join(failures))
    return evidence(comparison.searches, comparison.record)


def evidence(searches: Sequence[Search], record: Record) -> Evidence:
    """What complete searches came to, each at its best rate."""
    found = Evidence({}, {})
    for search in searches:
        best = search.best(record)
        result = None if best is None else record.result(search.at(best)[0])
        if best is not None and result is not None:
            entry = search.entry
            own = " ".join(word for word in entry.words if word.startswith(("split=", "head=")))
            found.probes[entry.method] = Probe(entry.method, own, best, result.validation, result.bytes_up)
            found.agreement.update(result.agreement or {})
    return found


def probe_grid(words: Sequence[str], rounds: int | None = None) -> Grid:
    """The candidates on the user's data, on one seed, for all of the run's rounds or fewer. Raises
    ConfigError for words that choose a split."""
    if given := [word for word in words if word.startswith("split")]:
        raise ConfigError(f"advise chooses the split: leave out {' '.join(given)}")
    config = load(words)
    if not config.federation.validation_examples:
        words = [*words, f"federation.validation_examples={HELD_OUT}"]
    head = [word for word in words if word.startswith("head=")]
    short = f" federation.rounds={min(rounds, config.federation.rounds)}" if rounds else ""
    own_rate = any(word.startswith("train.lr=") for word in words)
    return Grid(
        title="Advice",
        regimes={YOURS: shlex.join(word for word in words if word not in head)},
        fixed={YOURS: shlex.join(head)},
        methods={name: f"{own}{short}" for name, own in CANDIDATES.items()},
        reference=ALONE,
        seeds=[config.seed],
        rates=[config.train.lr] if own_rate else RATES,
        every=0,
    )


def probed(run_dir: Path) -> Row:
    """What a finished probe came to, with the agreement of clients where they trained alone."""
    return {**measured(run_dir), "agreement": agreement(run_dir)}


def agreement(run_dir: Path) -> dict[str, float]:
    """By role A and B, the mean cosine over pairs of clients, and over tensors, of what a run that shared
    nothing has changed; empty for a run that shared something."""
    config = read_config(run_dir)
    model = assemble.skeleton(config)
    if config.split(model.layout).shared:
        return {}
    factors = model.layout.select(spec.name for spec in model.layout if spec.role in SHARES.values())
    exporter = Exporter(config, RunDirectory(run_dir, config), model)
    start = factors.pack(cut(initial_state(model.layout, config.seed, config.head.row_norm), factors))
    ends = {client: factors.pack(cut(exporter.tensors(client), factors)) for client in exporter.clients()}
    names = frozenset(factors.names)
    apart = disagreement(factors, [Update(c, 0, names, None, end - start) for c, end in ends.items()])
    cosines: dict[str, list[float]] = {}
    for spec in factors:
        if spec.name in apart:
            cosines.setdefault(spec.role, []).append(1 - 2 * apart[spec.name])
    return {role: fmean(values) for role, values in cosines.items()}
