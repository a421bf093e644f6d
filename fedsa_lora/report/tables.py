"""The tables that the command line prints before a run and after an advice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from fedsa_lora.compare.advice import ALONE, Advice, Evidence
from fedsa_lora.decision import BATCH, recorded
from fedsa_lora.exchange.arrays import ROLES
from fedsa_lora.learning.settings import AUTO
from fedsa_lora.report.wording import amount, difference, percent, shown
from fedsa_lora.runs.measures import spread
from fedsa_lora.settings import RunConfig

if TYPE_CHECKING:
    from fedsa_lora.launch.plan import Plan


def plan_tables(config: RunConfig, plan: Plan, changed: Mapping[str, str]) -> Iterator[Table]:
    """The plan of a run, and the settings that the command changed in its experiment."""
    counts, clients, train = plan.parameters, plan.federation.clients, config.train
    sizes = [share.train for share in clients.values()]
    examples = f"{min(sizes)} to {max(sizes)} train examples" if sizes else "their own data"
    length = f"{train.epochs} epochs" if train.steps is None else f"{train.steps} steps"
    rows = {
        "parameters": ", ".join(f"{r} {counts[r]:,}" for r in ("base", "A", "B", "head") if counts[r]),
        **plan.divided,
        "split": ", ".join(f"{r} {config.split.words()[r]}" for r in ROLES if counts[r]),
        "trained / shared": f"{plan.trained:,} / {counts['shared']:,} parameters per client",
        **_factors(plan),
        "upload": f"{amount(plan.bytes_up)} per client and round, {config.codec.name}",
        "broadcast": "all values" if config.downlink is None else f"differences, {config.downlink.name}",
        **config.describe(),
        "classes": plan.federation.classes_in_words(),
        "rows": "; ".join(count.words() for count in plan.federation.rows) or "those of each client",
        "clients": f"{config.federation.clients} with {examples}",
        "rounds": f"{config.federation.rounds}, each {length} x batch {_batch(config)}",
        "machine": plan.machine,
        "writes to": f"{plan.run_dir} ({amount(plan.free_disk)} free)",
    }
    table = two_columns(config.title, rows)
    for remark in plan.model:
        table.add_row("model", escape(remark))
    for note in plan.federation.notes:
        table.add_row("note", escape(note))
    yield table
    if changed:
        yield two_columns("changed by the command", changed)


def _batch(config: RunConfig) -> str:
    """The examples of a step, as passes times those of a pass; those that the run decided, once it did."""
    train = config.train
    size = str(train.batch_size)
    if size == AUTO:
        size = recorded(config.run_dir).get(BATCH, AUTO)
    return size if train.accumulate == 1 else f"{train.accumulate} x {size}"


def _factors(plan: Plan) -> dict[str, str]:
    """The share of A in A and B, and what is saved by sending only A; nothing without adapters."""
    both = plan.parameters["A"] + plan.parameters["B"]
    if not both:
        return {}
    share = plan.parameters["A"] / both
    saved = f"A has {percent(share)} of their values, so sending only A saves {percent(1 - share)}"
    return {"A and B": f"in {plan.adapted} layers; {saved}"}


def evidence_table(evidence: Evidence, advice: Advice) -> Table:
    """Table of the measurements behind an advice."""
    measure = evidence.measure
    unit = ": in points" if measure.format == "percent" else ": higher is better"
    table = Table(title=f"{measure.words} on validation examples; gain over local only, noise{unit}")
    for column in ("candidate", "lr", "mean", "worst", "gain", "noise", "harmed", "up per round"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for name, probe in evidence.probes.items():
        lead, noise = evidence.lead(name, ALONE)
        measured = spread(probe.values, higher_is_better=measure.higher_is_better)
        table.add_row(
            escape(name), f"{probe.lr:g}", shown(measured.mean, measure), shown(measured.worst, measure),
            difference(lead, measure, "+"), difference(noise, measure), percent(evidence.harmed(name)),
            amount(probe.bytes_up),
            style="bold" if probe == advice.chosen else "",
        )  # fmt: skip
    if evidence.majority:
        floor = spread(evidence.majority, higher_is_better=measure.higher_is_better)
        table.add_row("majority class", "", shown(floor.mean, measure), shown(floor.worst, measure))
    return table


def two_columns(title: str, rows: Mapping[str, str]) -> Table:
    """Names and values under a title."""
    table = Table(title=escape(title), show_header=False)
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    return table
