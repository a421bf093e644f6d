"""Runs of the candidates for an advice, on a user's own data."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fedsa_lora.compare.advice import ALONE, SOFT, Evidence, Probe
from fedsa_lora.compare.comparison import Comparison
from fedsa_lora.compare.grid import YOURS, Grid, Run
from fedsa_lora.compare.record import Record
from fedsa_lora.compare.search import Search
from fedsa_lora.config.changes import named
from fedsa_lora.config.compose import load
from fedsa_lora.config.paths import paths
from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.group import FILES, READ, SERVED

CANDIDATES = {
    ALONE: "split=local_only head=local",
    "share A": "split=share_a head=local",
    "share B": "split=share_b head=local",
    "share A and B, own head": "split=share_ab head=local",
    "FedIT (share A and B)": "split=share_ab head=shared",
    SOFT: "split=soft head=soft",
}
RATES = [1.5e-3, 4e-3, 1e-2]
HELD_OUT = 30  # examples of a client, where the user's words set none aside


def probe(grid: Grid, folder: Path, processes: int | None, console: Console) -> Evidence:
    """Run the candidates of a ``probe_grid``; what is in ``folder`` already is not run again.

    Raises ConfigError for words that do not go with a candidate, RunError where a run failed.
    """
    comparison = Comparison.to_run(grid, "advise", folder)

    from fedsa_lora.compare.probed import probed  # what trains takes seconds to load

    comparison.run(processes, console, resume=True, measure=probed)
    _refuse_failed(comparison)
    whole, looked = load(grid.regimes[YOURS]), load(comparison.searches[0].entry.words)
    found = evidence(comparison.searches, comparison.record)
    return replace(found, looked=looked.federation.rounds, rounds=whole.federation.rounds)


def probe_folder(grid: Grid, base: Path = Path("runs")) -> Path:
    """Folder in which the probes of a grid are recorded: the same for the same words, data and model, so that
    an interrupted advice is resumed."""
    config = load(grid.regimes[YOURS])
    parts: list[object] = [grid.regimes, grid.fixed, grid.methods, grid.rates]
    for _, _, value in sorted(paths(config.resolved, READ, FILES, SERVED)):
        if (path := Path(value)).exists():
            files = [path] if path.is_file() else sorted(path.rglob("*"))
            parts += [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return base / f"advise-{digest[:8]}"


def regime(grid: Grid) -> dict[str, str]:
    """Names what is tried on which data, before it runs. Raises DataError for unusable data."""
    words = shlex.split(f"{grid.regimes[YOURS]} {grid.fixed[YOURS]}")
    config, looked = load(words), load(grid.entries()[0].words)
    federation = config.federation
    sizes = [share.train for share in config.task.describe().clients.values()]
    partitioner = dict(federation.partitioner)
    divided = str(partitioner.pop("_target_", "each node's own data")).rsplit(".", 1)[-1]
    settings = ", ".join(f"{key}={value}" for key, value in partitioner.items())
    heads = "set by each candidate" if not grid.fixed[YOURS] else config.head.policy
    return {
        "run": config.title,
        "clients": f"{federation.clients} with {min(sizes)} to {max(sizes)} train examples" if sizes else "",
        "partition": f"{divided} ({settings})" if settings else divided,
        "labels": "permuted by client" if federation.label_meaning == "per_client" else "the same for all",
        "head": heads,
        "rounds": f"{looked.federation.rounds} of {federation.rounds}",
        "candidates": ", ".join(dict.fromkeys(entry.method for entry in grid.entries())),
        "learning rates": ", ".join(f"{rate:g}" for rate in grid.rates),
    }


def command(grid: Grid, chosen: Probe) -> str:
    """The command that runs the chosen candidate on the user's data, each key once."""
    words = [*shlex.split(grid.regimes[YOURS]), *shlex.split(chosen.words), f"train.lr={chosen.lr}"]
    return shlex.join(["fedsa-lora", "run", *{named(word): word for word in words}.values()])


def _refuse_failed(comparison: Comparison) -> None:
    """Raise RunError where probes failed, with each cause once."""
    failed: dict[str, list[Run]] = {}
    for search in comparison.searches:
        for run, why in search.failed(comparison.record):
            failed.setdefault(why, []).append(run)
    lines = []
    for why, runs in failed.items():
        more = f" (and {len(runs) - 1} more)" if len(runs) > 1 else ""
        lines.append(f"{runs[0].entry.method}, lr {runs[0].lr:g}: {why}{more}")
    if lines:
        raise RunError("\n".join(["a run of the probe failed, so there is no advice", *lines]))


def evidence(searches: Sequence[Search], record: Record) -> Evidence:
    """Results of complete searches, each at its best rate."""
    found = Evidence({}, {})
    for search in searches:
        best = search.best(record)
        result = None if best is None else record.result(search.at(best)[0])
        if best is not None and result is not None:
            entry = search.entry
            own = " ".join(word for word in entry.words if word.startswith(("split=", "head=")))
            found.probes[entry.method] = Probe(entry.method, own, best, result.validation, result.bytes_up)
            found.agreement.update(result.agreement or {})
            floor = found.majority or result.majority or {}
            found = replace(found, majority=floor, measure=result.measure)
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
