"""The command line: ``fedsa-lora run | resume | watch | compare | advise | evaluate | export |
certificates | node | doctor``."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedsa_lora.arguments import parser
from fedsa_lora.config.changes import changes, named
from fedsa_lora.errors import FedSAError, StoppedError
from fedsa_lora.stopping import INTERRUPTED, TERMINATED, stoppable

if TYPE_CHECKING:
    from fedsa_lora.launch.plan import Plan
    from fedsa_lora.settings import RunConfig

EXIT_FAILED = 1
OWN_SETTING = {"experiment", "regime", "task", "task.dataset", "task.files"}  # instead of the quickstart
console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only when what was asked for was done."""
    options, beyond = parser().parse_known_args(arguments)
    if beyond and options.command != "node":
        parser().error(f"unrecognized arguments: {' '.join(beyond)}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    try:
        return _node(beyond) if options.command == "node" else _COMMANDS[options.command](options)
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        return stop.code
    except FedSAError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted; everything that was started has been stopped", file=sys.stderr)
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    from fedsa_lora.config.compose import load

    overrides = _with_experiment(options.overrides)
    name = load(overrides).name
    # what trains is loaded once there is something to train: faults of the config are reported without it
    from fedsa_lora.launch.federate import new_run_dir
    from fedsa_lora.launch.plan import make_plan
    from fedsa_lora.report.tables import plan_tables

    config = load(overrides, default_dir=str(new_run_dir(name)))
    plan = make_plan(config)
    for table in plan_tables(config, plan, changes(overrides)):
        console.print(table)
    if options.dry_run:
        return 0
    return _federate(config, overrides, plan)


def _federate(config: RunConfig, overrides: Sequence[str], plan: Plan) -> int:
    from fedsa_lora.launch.federate import federate
    from fedsa_lora.report.table import print_summary

    if federate(config, overrides, plan.place, console):
        print_summary(config.run_dir, console)
    else:
        console.print(f"the report is on the SuperLink's machine: {escape(str(config.run_dir))}")
    return 0


def _with_experiment(overrides: Sequence[str]) -> list[str]:
    """The quickstart, where neither an experiment nor data or a regime of the user's are named: those come
    with plain settings, not with the quickstart's artificial ones."""
    chosen = {named(word) for word in overrides}
    return list(overrides) if chosen & OWN_SETTING else ["experiment=quickstart", *overrides]


def _compare(options: argparse.Namespace) -> int:
    from fedsa_lora.compare.comparison import Comparison
    from fedsa_lora.compare.grid import read_grid
    from fedsa_lora.compare.making import at_once

    grid, name = read_grid(options.grid), Path(options.grid).stem
    if options.quick:
        grid, name = grid.quickly(), f"{name}-quick"
    folder = options.to or Path("runs") / f"compare-{name}"
    if options.recorded:
        comparison = Comparison.recorded(grid, folder, options.record)
    else:
        comparison = Comparison.to_run(grid, name, folder, options.record)
        with stoppable(comparison.stopped):
            comparison.run(options.processes or at_once(), console, options.resume, options.restart)
    complete = comparison.write()
    for line in [*comparison.notes, *comparison.failures(), *comparison.verdicts()]:
        console.print(escape(line), soft_wrap=True)
    console.print(f"written: {escape(str(comparison.folder / 'table.md'))}", soft_wrap=True)
    return 0 if complete else EXIT_FAILED


def _advise(options: argparse.Namespace) -> int:
    from fedsa_lora.compare.advice import advise
    from fedsa_lora.compare.making import at_once
    from fedsa_lora.compare.probe import command, probe, probe_folder, probe_grid, regime
    from fedsa_lora.report.tables import evidence_table, two_columns

    grid = probe_grid(_with_experiment(options.overrides), options.rounds)
    folder = probe_folder(grid)
    console.print(two_columns("what is tried", regime(grid) | {"recorded in": str(folder)}))
    with stoppable(lambda: f"stopped; the same command goes on with the runs in {folder}"):
        evidence = probe(grid, folder, options.processes or at_once(), console)
    advice = advise(evidence)
    console.print(evidence_table(evidence, advice))
    for reason in advice.reasons:
        console.print(escape(reason), soft_wrap=True)
    if advice.chosen is not None:
        told = escape(command(grid, advice.chosen))
        console.print(told, style="bold", soft_wrap=True, highlight=False)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from fedsa_lora.launch.resuming import to_resume

    config, words = to_resume(
        options.run_dir, options.overrides, options.allow_changes, options.allow_changed_data
    )

    # what trains takes seconds to load, and faults of the command need none of it
    from fedsa_lora.files import Held
    from fedsa_lora.launch.federate import stopped
    from fedsa_lora.launch.plan import make_plan
    from fedsa_lora.report.table import print_summary
    from fedsa_lora.runs.changed_data import check_data
    from fedsa_lora.server.finish import finish_interrupted

    _remark(check_data(options.run_dir, config, options.allow_changed_data))
    with closing(Held(config.run_dir)) as begun, stoppable(lambda: stopped(begun, words)):
        if finish_interrupted(config, words):  # without Flower: no client is asked
            print_summary(config.run_dir, console)
            return 0
    return _federate(config, words, make_plan(config))


def _remark(text: str) -> None:
    """Print a remark that a user should see first."""
    if text:
        console.print(escape(text), style="yellow", soft_wrap=True)


def _watch(options: argparse.Namespace) -> int:
    from fedsa_lora.report.table import print_reason, print_summary
    from fedsa_lora.report.watch import follow, view
    from fedsa_lora.runs.progress import RunProgress

    progress = RunProgress(options.run_dir)
    codes = {"failed": EXIT_FAILED, "stopped": TERMINATED}
    if options.once:
        console.print(view(progress, console))
        if progress.state in codes:
            print_reason(progress.status, console)
        return codes.get(progress.state, 0)
    try:
        follow(progress, console)
    except KeyboardInterrupt:
        print("no longer watched; the run goes on", file=sys.stderr)
        return INTERRUPTED
    print_summary(options.run_dir, console)
    return codes.get(progress.state, 0)


def _evaluate(options: argparse.Namespace) -> int:
    from fedsa_lora.config.compose import read_config

    config = read_config(options.run_dir)

    from fedsa_lora.analysis.evaluation import evaluate_run
    from fedsa_lora.analysis.reevaluate import reevaluate
    from fedsa_lora.report.wording import NOT_MEASURED, shown
    from fedsa_lora.runs.changed_data import check_data
    from fedsa_lora.runs.reading import EVALUATION

    _remark(check_data(options.run_dir, config, options.allow_changed_data))
    primary = config.task.measures[0]
    table = Table(title=f"personalised {primary.words} on each client's test examples")
    for column in ("client", "examples", f"{primary.words} now", "in the run"):
        table.add_column(column, justify="right")
    for row in reevaluate(options.run_dir, allow_changed_data=True):
        values = [NOT_MEASURED if value is None else f"{value:.4f}" for value in (row.value, row.recorded)]
        table.add_row(row.client, str(row.examples), *values)
    console.print(table)
    if not options.union and options.newcomer_steps is None:
        return 0
    found = evaluate_run(options.run_dir, options.union, options.newcomer_steps, allow_changed_data=True)
    for name in ("union", "newcomer"):
        if name in found:
            by_client = found[name][primary.name].values()
            mean = shown(sum(by_client) / len(by_client), primary)
            console.print(f"{name}: mean {primary.words} {mean}")
    console.print(f"written: {escape(str(options.run_dir / EVALUATION))}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from fedsa_lora.config.compose import read_config

    config = read_config(options.run_dir)

    from fedsa_lora.analysis.export import Exporter
    from fedsa_lora.runs.changed_data import check_classes
    from fedsa_lora.runs.directory import RunDirectory
    from fedsa_lora.server.build import skeleton

    if options.store is not None:
        config = replace(config, run=replace(config.run, store=str(options.store)))
    check_classes(options.run_dir, config)
    directory = RunDirectory(options.run_dir.resolve(), config)
    exporter = Exporter(config, directory, skeleton(config))
    folder = options.to or options.run_dir / "export" / options.client
    written = exporter.export(options.client, folder, merge=options.merge)
    console.print(f"written: {escape(str(written))}")
    return 0


def _certificates(options: argparse.Namespace) -> int:
    from fedsa_lora.deployment.certificates import make_certificates

    written = make_certificates(options.folder, options.host, options.node, options.renew)
    for path in written:
        console.print(f"written: {escape(str(path))}", soft_wrap=True)
    if not written:
        console.print(f"nothing is missing in {escape(str(options.folder))}", soft_wrap=True)
    return 0


def _node(arguments: Sequence[str]) -> int:
    from fedsa_lora.deployment.node import run_node

    return run_node(arguments)


def _doctor(options: argparse.Namespace) -> int:
    from fedsa_lora.doctor.deployment import Deployment, examine_deployment
    from fedsa_lora.doctor.machine import examine

    table = Table(title="fedsa-lora doctor")
    for column in ("", "check", "found", "what to do"):
        table.add_column(column)
    asked = Deployment(
        superlink=options.superlink,
        port=options.port,
        certificates=options.certificate,
        key=options.key,
        data=options.data,
        store=options.store,
    )
    checks = [*examine(), *examine_deployment(asked)]
    for check in checks:
        mark = "[bold red]no[/]"
        if check.ok:
            mark = "[yellow]soon[/]" if check.remedy else "[green]ok[/]"
        table.add_row(mark, escape(check.name), escape(check.found), escape(check.remedy))
    console.print(table)
    return 0 if all(check.ok for check in checks) else EXIT_FAILED


_COMMANDS = {
    "run": _run,
    "resume": _resume,
    "watch": _watch,
    "compare": _compare,
    "advise": _advise,
    "evaluate": _evaluate,
    "export": _export,
    "certificates": _certificates,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main())
