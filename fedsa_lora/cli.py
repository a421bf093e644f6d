"""The command line: ``fedsa-lora run | resume | watch | compare | advise | evaluate | export |
certificates | node | doctor``."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedsa_lora.errors import FedSAError
from fedsa_lora.exchange.arrays import ROLES

if TYPE_CHECKING:
    from fedsa_lora.compare.advice import Advice, Evidence
    from fedsa_lora.plan import Plan
    from fedsa_lora.settings import RunConfig

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
console = Console()


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    main_parser = argparse.ArgumentParser(prog="fedsa-lora", description=__doc__)
    commands = main_parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a federation through `flwr run`: a simulation, or deployed")
    run.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. split=share_b train.lr=2e-3")
    run.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    _add_compare(commands.add_parser("compare", help="compare methods in regimes, as a grid says"))
    advise = commands.add_parser("advise", help="which split and head to use, from short runs on your data")
    advise.add_argument("overrides", nargs="*", help="as for run: your task and partition, but no split")
    advise.add_argument("--rounds", type=_positive, help="of each short run (default: 6)")
    _add_processes(advise)
    watch = commands.add_parser("watch", help="follow a run: rounds, clients, warnings, time left")
    watch.add_argument("run_dir", type=Path)
    watch.add_argument("--once", action="store_true", help="print how it stands now, and stop")
    resume = commands.add_parser("resume", help="go on with a run that was broken off, to the same bits")
    resume.add_argument("run_dir", type=Path)
    resume.add_argument("overrides", nargs="*", help="what changes, e.g. federation.rounds=24")
    resume.add_argument(
        "--allow-changes", action="store_true", help="of rounds, evaluation, machine or logging"
    )
    evaluate = commands.add_parser("evaluate", help="evaluate every client of a finished run again")
    evaluate.add_argument("run_dir", type=Path)
    evaluate.add_argument(
        "--union",
        action="store_true",
        help="each model also on all clients' test parts together (simulation)",
    )
    evaluate.add_argument(
        "--newcomer-steps", type=int, metavar="N", help="each client also as one that joins now, for N steps"
    )
    export = commands.add_parser("export", help="write a client's model as stock PEFT loads it")
    export.add_argument("run_dir", type=Path)
    export.add_argument("--client", required=True)
    export.add_argument("--merge", action="store_true", help="merge the adapter into the backbone")
    export.add_argument("--store", type=Path, help="where the client's own part is (default: in the run)")
    export.add_argument("--to", type=Path, help="folder to write (default: RUN/export/CLIENT)")
    certificates = commands.add_parser("certificates", help="make a federation's certificates and keys")
    certificates.add_argument("folder", type=Path)
    certificates.add_argument("--host", nargs="+", default=[], help="names and addresses of the SuperLink")
    certificates.add_argument("--node", nargs="+", default=[], help="names of nodes, for a key each")
    commands.add_parser("node", help="run a SuperNode; takes the arguments of flower-supernode")
    _add_doctor(commands.add_parser("doctor", help="check this machine, and its part in a deployment"))
    return main_parser


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("--superlink", metavar="HOST:PORT", help="can it be reached, and is it ours?")
    doctor.add_argument("--port", type=_positive, help="is it free here, or who listens?")
    doctor.add_argument(
        "--certificate",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the root's, the server's or (given twice) both: names, dates, signature",
    )
    doctor.add_argument(
        "--key", type=Path, metavar="FILE", help="of the server: does it fit its certificate?"
    )
    doctor.add_argument("--data", type=Path, metavar="PATH", help="can a client's rows be read?")
    doctor.add_argument("--store", type=Path, metavar="PATH", help="can a client's state be written?")


def _add_compare(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("grid", help="a name in conf/compare, or a YAML file (docs/compare.md)")
    compare.add_argument("--quick", action="store_true", help="the part of the grid that is for a first look")
    begin = compare.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="go on where it stopped; try again what failed")
    begin.add_argument("--restart", action="store_true", help="throw away what is recorded")
    begin.add_argument("--recorded", action="store_true", help="run nothing, show what is recorded")
    _add_processes(compare)
    compare.add_argument("--to", type=Path, help="folder to write (default: runs/compare-GRID)")
    compare.add_argument(
        "--record", type=Path, help="file of the runs, which grids may share (default: runs.jsonl there)"
    )


def _add_processes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--processes", type=_positive, help="runs at the same time (default: as cores and memory allow)"
    )


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected at least 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only when what was asked for was done."""
    options, beyond = parser().parse_known_args(arguments)
    if beyond and options.command != "node":
        parser().error(f"unrecognized arguments: {' '.join(beyond)}")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    try:
        return _node(beyond) if options.command == "node" else _COMMANDS[options.command](options)
    except FedSAError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        print(error, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted; everything that was started has been stopped", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    from fedsa_lora.config import load
    from fedsa_lora.plan import make_plan
    from fedsa_lora.runs.federate import new_run_dir

    overrides = _with_experiment(options.overrides)
    name = load(overrides).name
    config = load(overrides, default_dir=str(new_run_dir(name)))
    plan = make_plan(config)
    print_plan(config, plan)
    if options.dry_run:
        return 0
    return _federate(config, overrides, plan)


def _federate(config: RunConfig, overrides: Sequence[str], plan: Plan) -> int:
    from fedsa_lora.runs.federate import federate
    from fedsa_lora.runs.table import print_summary

    if federate(config, overrides, plan.place, console):
        print_summary(config.run_dir, console)
    else:
        console.print(f"the report is on the SuperLink's machine: {escape(str(config.run_dir))}")
    return 0


def _with_experiment(overrides: Sequence[str]) -> list[str]:
    """The quickstart, where no experiment is named."""
    named = any(word.split("=")[0] == "experiment" for word in overrides)
    return [*([] if named else ["experiment=quickstart"]), *overrides]


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
        comparison.run(options.processes or at_once(), console, options.resume, options.restart)
    complete = comparison.write()
    for line in [*comparison.notes, *comparison.failures(), *comparison.verdicts()]:
        console.print(escape(line), soft_wrap=True)
    console.print(f"written: {escape(str(comparison.folder / 'table.md'))}", soft_wrap=True)
    return 0 if complete else EXIT_FAILED


def _advise(options: argparse.Namespace) -> int:
    from fedsa_lora.compare.advice import advise
    from fedsa_lora.compare.making import at_once
    from fedsa_lora.compare.probe import ROUNDS, YOURS, probe, probe_grid

    grid = probe_grid(_with_experiment(options.overrides), options.rounds or ROUNDS)
    with tempfile.TemporaryDirectory(prefix="fedsa-advise-") as folder:
        evidence = probe(grid, Path(folder), options.processes or at_once(), console)
    advice = advise(evidence)
    print_evidence(evidence, advice)
    for reason in advice.reasons:
        console.print(escape(reason), soft_wrap=True)
    chosen = advice.chosen
    words = f"{grid.regimes[YOURS]} {chosen.words} train.lr={chosen.lr:g}"
    console.print(f"fedsa-lora run {escape(words)}", style="bold", soft_wrap=True, highlight=False)
    return 0


def print_evidence(evidence: Evidence, advice: Advice) -> None:
    """What an advice was measured by, as a table."""
    from fedsa_lora.compare.advice import ALONE
    from fedsa_lora.runs.measures import harmed, spread
    from fedsa_lora.runs.wording import amount, percent

    table = Table(title="accuracy on validation examples; gain over local only, noise: in points")
    for column in ("candidate", "lr", "mean", "worst", "gain", "noise", "harmed", "up a round"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for name, probe in evidence.probes.items():
        lead, noise = evidence.lead(name, ALONE)
        measured = spread(probe.accuracy)
        below = harmed(probe.accuracy, evidence.probes[ALONE].accuracy)
        table.add_row(
            escape(name), f"{probe.lr:g}", percent(measured.mean), percent(measured.worst),
            f"{100 * lead:+.1f}", f"{100 * noise:.1f}", percent(below), amount(probe.bytes_up),
            style="bold" if probe == advice.chosen else "",
        )  # fmt: skip
    console.print(table)


def _resume(options: argparse.Namespace) -> int:
    from fedsa_lora.plan import make_plan
    from fedsa_lora.runs.resuming import to_resume

    config, words = to_resume(options.run_dir, options.overrides, options.allow_changes)
    return _federate(config, [*words, "run.resume=true"], make_plan(config))


def _watch(options: argparse.Namespace) -> int:
    from fedsa_lora.runs.progress import RunProgress
    from fedsa_lora.runs.table import print_summary
    from fedsa_lora.runs.watch import follow, view

    progress = RunProgress(options.run_dir)
    if options.once:
        console.print(view(progress, console))
        return EXIT_FAILED if progress.state == "failed" else 0
    try:
        follow(progress, console)
    except KeyboardInterrupt:
        print("no longer watched; the run goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    print_summary(options.run_dir, console)
    return 0 if progress.state == "completed" else EXIT_FAILED


def _evaluate(options: argparse.Namespace) -> int:
    from fedsa_lora.runs.evaluation import evaluate_run
    from fedsa_lora.runs.reading import EVALUATION
    from fedsa_lora.runs.reevaluate import reevaluate
    from fedsa_lora.runs.wording import percent

    table = Table(title="personalised accuracy on each client's test split")
    for column in ("client", "examples", "accuracy now", "in the run"):
        table.add_column(column, justify="right")
    for row in reevaluate(options.run_dir):
        recorded = "–" if row.recorded is None else f"{row.recorded:.4f}"  # noqa: RUF001
        table.add_row(row.client, str(row.examples), f"{row.accuracy:.4f}", recorded)
    console.print(table)
    if not options.union and options.newcomer_steps is None:
        return 0
    found = evaluate_run(options.run_dir, options.union, options.newcomer_steps)
    for name in ("union", "newcomer"):
        if name in found:
            by_client = found[name]["accuracy"].values()
            console.print(f"{name}: mean accuracy {percent(sum(by_client) / len(by_client))}")
    console.print(f"written: {escape(str(options.run_dir / EVALUATION))}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from fedsa_lora import assemble
    from fedsa_lora.config import read_config
    from fedsa_lora.runs.export import Exporter
    from fedsa_lora.runs.rundir import RunDirectory

    config = read_config(options.run_dir)
    if options.store is not None:
        config = replace(config, run=replace(config.run, store=str(options.store)))
    directory = RunDirectory(options.run_dir.resolve(), config)
    exporter = Exporter(config, directory, assemble.skeleton(config))
    folder = options.to or options.run_dir / "export" / options.client
    written = exporter.export(options.client, folder, merge=options.merge)
    console.print(f"written: {escape(str(written))}")
    return 0


def _certificates(options: argparse.Namespace) -> int:
    from fedsa_lora.deployment.certificates import make_certificates

    for path in make_certificates(options.folder, options.host, options.node):
        console.print(f"written: {escape(str(path))}", soft_wrap=True)
    return 0


def _node(arguments: Sequence[str]) -> int:
    from fedsa_lora.deployment.node import run_node

    return run_node(arguments)


def _doctor(options: argparse.Namespace) -> int:
    from fedsa_lora.doctor import examine
    from fedsa_lora.doctor_deployment import Deployment, examine_deployment

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
        mark = "[green]ok[/]" if check.ok else "[bold red]no[/]"
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


def print_plan(config: RunConfig, plan: Plan) -> None:
    """The plan of a run as a table."""
    from fedsa_lora.runs.wording import amount
    from fedsa_lora.validation import strategy_class

    counts, clients, train = plan.parameters, plan.federation.clients, config.train
    sizes = [share.train for share in clients.values()]
    examples = f"{min(sizes)} to {max(sizes)} train examples" if sizes else "data of their own"
    length = f"{train.epochs} epochs" if train.steps is None else f"{train.steps} steps"
    rows = {
        "parameters": ", ".join(f"{r} {counts[r]:,}" for r in ("base", "A", "B", "head") if counts[r]),
        "split": ", ".join(f"{r} {config.split.words()[r]}" for r in ROLES if counts[r]),
        "trained / shared": f"{plan.trained:,} / {counts['shared']:,} parameters by client",
        "upload": f"{amount(plan.bytes_up)} by client and round, {config.codec.name}",
        "broadcast": "every value" if config.downlink is None else f"changes, {config.downlink.name}",
        "server rule": strategy_class(config).__name__,
        "groups": "one for all clients" if config.clusters is None else config.clusters.words(),
        "bounds": config.bounds.words(),
        "clients": f"{config.federation.clients} with {examples}",
        "rounds": f"{config.federation.rounds} of {length} x batch {train.batch_size}",
        "machine": plan.machine,
        "writes to": f"{plan.run_dir} ({amount(plan.free_disk)} free)",
    }
    table = Table(title=escape(config.title), show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    for note in plan.federation.notes:
        table.add_row("note", escape(note))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
