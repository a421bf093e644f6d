"""Reach of one model for all clients: its primary measure on the held-out part of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.client.model import ClientModel
from fedsa_lora.exchange.arrays import NamedArrays
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.report.wording import counted, shown
from fedsa_lora.runs.reading import read_jsonl
from fedsa_lora.tasks.task import Examples, measured


@dataclass(frozen=True)
class Reach:
    """The primary measure of one model: the ``mean`` of its values on the held-out ``part`` of each of the
    ``clients``, and ``together`` its value on all those examples, None where it was not measured."""

    measure: Measure
    part: str
    clients: int
    mean: float
    together: float | None = None

    def words(self) -> str:
        """The values as a sentence."""
        parts = f"the {self.part} parts of {counted(self.clients, 'client')}"
        said = f"{self.measure.words.capitalize()} {shown(self.mean, self.measure)}, the mean over {parts}"
        if self.together is None:
            return f"{said}."
        return f"{said}; {shown(self.together, self.measure)} on all their examples together."


def measured_reach(exporter: Exporter, tensors: NamedArrays) -> Reach | None:
    """Measure a model whose labels mean the same for all clients, given by every tensor of the layout. None
    where no client's held-out examples are on this machine."""
    config = exporter.config
    if config.federation.own:
        return None
    task, part = config.task, config.evaluation.part
    data, clients = exporter.bench.data, sorted(task.describe().clients)
    held_out = {client: data(client).held_out(part) for client in clients}
    held_out = {client: examples for client, examples in held_out.items() if len(examples)}
    if not held_out:
        return None
    everything = Examples.joined([*held_out.values()])
    first = next(iter(held_out))
    served = ClientModel(first, exporter.bench, build.store(config, first))
    local = served.local(exporter.round, frozenset(), tensors, merged=exporter.merged)
    answers = exporter.bench.outcome(local.still(asked=(everything,))).answers[0]
    primary = task.measures[0]
    ends = np.cumsum([len(examples) for examples in held_out.values()])
    by_client = [
        measured(task, answers[end - len(examples) : end], examples.labels)[primary.name]
        for end, examples in zip(ends, held_out.values(), strict=True)
    ]
    together = measured(task, answers, everything.labels)[primary.name]
    return Reach(primary, part, len(held_out), float(np.mean(by_client)), together)


def recorded_reach(exporter: Exporter) -> Reach | None:
    """The reach of the model that all clients hold, as they measured it after the last round. None where they
    measured another: one that they train on before use, a personal one beside it, or one of a lower rank."""
    config, primary = exporter.config, exporter.config.task.measures[0]
    if config.personalisation.adapts or config.federation.ranks is not None:
        return None
    rows = read_jsonl(exporter.directory.path / "clients.jsonl")
    last = [row for row in rows if row["phase"] == "evaluate" and row["round"] == exporter.round]
    name = primary.name if not config.personalisation.beside else primary.of_global
    values = [row[name] for row in last if row.get(name) is not None]
    if not values:
        return None
    return Reach(primary, config.evaluation.part, len(values), float(np.mean(values)))
