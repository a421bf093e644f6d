"""Measures of a finished run that need every client's data at once: in simulation only.

In a real deployment no machine has the test parts of all clients, so there neither can be measured.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.client.model import ClientModel
from fedsa_lora.client.workbench import Workbench
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import cut
from fedsa_lora.files import write_atomically
from fedsa_lora.learning.job import Job
from fedsa_lora.learning.local_round import LocalRound
from fedsa_lora.learning.training import round_batches
from fedsa_lora.report.page import write_report
from fedsa_lora.runs.changed_data import check_data
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.reading import EVALUATION, REPORT, read_json
from fedsa_lora.seeds import generator, torch_seed
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.task import Examples, measured


def evaluate_run(
    run_dir: Path, union: bool = False, newcomer_steps: int | None = None, allow_changed_data: bool = False
) -> dict[str, Any]:
    """Measure, write ``evaluation.json`` into the run directory and its report again; what was measured
    before and is not now stays. Raises FedSAError when the run or a client's state is unusable, or the data
    changed and that is not allowed, as other classes never are."""
    config = read_config(run_dir)
    check_data(run_dir, config, allow_changed_data)
    bench = build.workbench(config.whole)
    exporter = Exporter(config, RunDirectory(run_dir.resolve(), config), bench.model)
    path = run_dir / EVALUATION
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    if union:
        found["union"] = on_union(config, bench, exporter)
    if newcomer_steps is not None:
        found["newcomer"] = of_newcomers(config, bench, exporter, newcomer_steps)
    write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
    if (run_dir / REPORT).exists():
        write_report(run_dir)
    return found


def on_union(config: RunConfig, bench: Workbench, exporter: Exporter) -> dict[str, Any]:
    """The primary measure of each client's own model on the held-out examples of all clients together.

    Where label meanings differ, the examples of others are called what the evaluated client calls them: it
    is asked whether its model is right about their inputs, not whether it speaks their language.
    """
    task, clients = config.task, exporter.clients()
    if not clients:
        raise RunError(
            f"{config.store_dir} holds no client states: models can be measured on the union of all "
            f"examples where a simulation ran, not on the server of a deployment"
        )
    parts = {client: bench.data(client).held_out(config.evaluation.part) for client in clients}
    if not any(map(len, parts.values())):
        raise RunError(f"no client has {config.evaluation.part} examples: their union is empty")
    names = {client: task.client_labels(client) for client in clients}
    everything = Examples.joined([*parts.values()])
    primary, values = bench.primary.name, {}
    for client in clients:
        served = ClientModel(client, bench, build.store(config, client))
        job = served.own(exporter.round, exporter.own_model(client), exporter.merged)
        outcome = bench.outcome(replace(job, asked=(everything,)))
        labels = [_called(parts[other].labels, names[other], names[client]) for other in clients]
        values[client] = measured(task, outcome.answers[0], np.concatenate(labels))[primary]
    return {"examples": len(everything), primary: values}


def of_newcomers(config: RunConfig, bench: Workbench, exporter: Exporter, steps: int) -> dict[str, Any]:
    """Each client as if it joined at the end: it has what is shared and the common start of what is not,
    and trains it for some local steps on its own train part.

    The primary measure, under its name, is on its own held-out part, of those that have one; ``alone`` the
    same from the common start of everything, without what the federation learned. ``took_part``: its data had
    a part in what is shared, so that only the others are newcomers in earnest.
    """
    if steps < 0:
        raise RunError(f"a newcomer cannot train for {steps} steps: expected 0 or more")
    primary = bench.primary.name
    found: dict[str, Any] = {"steps": steps, primary: {}, "alone": {}, "took_part": {}}
    settings = bench.alone.settings if bench.alone else bench.settings
    for client in sorted(config.task.describe().clients):
        served = ClientModel(client, bench, build.store(config, client))
        if not len(served.held_out):
            continue
        layout = bench.layout(client)
        initial, shared = cut(bench.initial, layout), exporter.own_model(client, own=False).common
        joins = served.local(0, config.split(layout).trained, shared, merged=exporter.merged)
        alone = served.local(0, config.split.alone()(layout).trained, initial, settings=settings)
        found[primary][client] = served.measure(newcomer(joins, steps))[primary]
        found["alone"][client] = served.measure(newcomer(alone, steps))[primary]
        found["took_part"][client] = served.store.load() is not None
    if not found[primary]:
        raise RunError(
            f"no client's {config.evaluation.part} examples are known here: newcomers can be measured only "
            f"where a simulation ran"
        )
    return found


def newcomer(local: LocalRound, steps: int) -> Job:
    """The first steps of a client from a start, with separate draws."""
    if not steps:
        return local.still()
    settings = replace(local.settings, steps=steps, epochs=None)
    batches = generator(local.seed, "newcomer batches", local.client)
    return local.still(
        examples=local.augmented,
        settings=settings,
        batches=round_batches(local.examples.lengths, settings, batches),
        dropout=torch_seed(local.seed, "newcomer dropout", local.client),
    )


def _called(labels: NDArray[np.int64], theirs: tuple[str, ...], ours: tuple[str, ...]) -> NDArray[np.int64]:
    """Labels of one client as another calls them; as they are where both have the same classes, or none."""
    return labels if theirs == ours else renaming(theirs, ours)[labels]


def renaming(theirs: tuple[str, ...], ours: tuple[str, ...]) -> NDArray[np.int64]:
    """By the number of a class at one client its number at another, found by its name.

    Raises RunError where names do not show which class is which.
    """
    if theirs == ours:
        return np.arange(len(ours))
    if len(set(ours)) < len(ours) or set(ours) != set(theirs):
        raise RunError(
            f"classes {sorted(theirs)} of one client cannot be found among {sorted(ours)} of another: "
            "the result of a model on the union of their examples is not defined"
        )
    return np.array([ours.index(name) for name in theirs], dtype=np.int64)
