"""Evaluate the clients of a finished run once more, from what the run left on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.client.model import ClientModel
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import RunError
from fedsa_lora.learning.together import at_the_same_time
from fedsa_lora.runs.changed_data import check_data
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.reading import read_jsonl


@dataclass(frozen=True)
class Reevaluation:
    """The primary measure of one client's personalised model, now and as the run recorded it; None of a
    client without examples to be measured on."""

    client: str
    examples: int
    value: float | None
    recorded: float | None


def reevaluate(
    run_dir: Path,
    part: Literal["test", "validation"] | None = None,
    allow_changed_data: bool = False,
) -> Iterator[Reevaluation]:
    """Every client, as many in one pass as the run has in a cohort, on the part of its data that the run
    measured or on ``part``.

    What is predicted on the part that the run measured is written into the client's own folder.
    Raises FedSAError when the run or a client's state is unusable, there is no client's state here, or the
    data changed and that is not allowed, as other classes never are.
    """
    config = read_config(run_dir)
    check_data(run_dir, config, allow_changed_data)
    bench = replace(build.workbench(config.whole), part=part or config.evaluation.part)
    exporter = Exporter(config, RunDirectory(run_dir.resolve(), config), bench.model)
    if not exporter.clients():
        raise RunError(
            f"{config.store_dir} holds no client states: clients can be evaluated only where they trained, "
            f"which in a deployment is on the nodes"
        )
    primary = bench.primary.name
    rows = read_jsonl(run_dir / "clients.jsonl")
    recorded = {row["client"]: row.get(primary) for row in rows if row["phase"] == "evaluate"}
    record = part in (None, config.evaluation.part)

    def one(name: str) -> Reevaluation:
        client = ClientModel(name, bench, build.store(config, name))
        value = None
        if len(client.held_out):
            job = client.own(exporter.round, exporter.own_model(name), exporter.merged)
            value = client.measure(job, exporter.round if record else None)[primary]
        return Reevaluation(name, len(client.held_out), value, recorded.get(name))

    names = exporter.clients()
    for start in range(0, len(names), bench.cohort):
        block = names[start : start + bench.cohort]
        yield from at_the_same_time([partial(one, name) for name in block])
