"""Commands on finished runs: evaluate and export their clients' models, report."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from fedsa_lora.commands.arguments import add_changed_data, add_json
from fedsa_lora.commands.screen import Answer, console, remark
from fedsa_lora.errors import ConfigError

if TYPE_CHECKING:
    from fedsa_lora.analysis.export import Exporter
    from fedsa_lora.commands.arguments import Commands
    from fedsa_lora.exchange.measure import Measure


def add(commands: Commands) -> None:
    """Add the commands of this family."""
    _add_evaluate(commands)
    _add_export(commands)
    _add_report(commands)


def _add_evaluate(commands: Commands) -> None:
    evaluate = commands.add_parser("evaluate", help="evaluate every client of a finished run again")
    evaluate.add_argument("run_dir", type=Path)
    add_changed_data(evaluate)
    evaluate.add_argument(
        "--union",
        action="store_true",
        help="also evaluate each model on the union of all clients' test parts (simulation)",
    )
    evaluate.add_argument(
        "--newcomer-steps",
        type=int,
        metavar="N",
        help="also evaluate each client as a newcomer that joins now and trains N steps",
    )
    evaluate.add_argument(
        "--unlearning",
        action="store_true",
        help="measure what was forgotten, and where it remains (simulation)",
    )
    evaluate.add_argument(
        "--retrained",
        type=Path,
        metavar="RUN",
        help="with --unlearning: the reference run, which never saw the facts",
    )
    add_json(evaluate)
    evaluate.set_defaults(call=_evaluate)


def _add_export(commands: Commands) -> None:
    export = commands.add_parser("export", help="export a client's model, or the global one, for stock PEFT")
    export.add_argument("run_dir", type=Path)
    whose = export.add_mutually_exclusive_group(required=True)
    whose.add_argument("--client", metavar="NAME", help="export the model of this client")
    whose.add_argument(
        "--global",
        dest="of_all",
        action="store_true",
        help="export the global model, and evaluate it",
    )
    export.add_argument(
        "--mean-b",
        action="store_true",
        help="with --global, where B or the head is local: use their mean over clients, an approximation",
    )
    export.add_argument("--merge", action="store_true", help="merge the adapter into the backbone")
    export.add_argument(
        "--store", type=Path, help="folder with the clients' local state (default: in the run)"
    )
    export.add_argument(
        "--to", type=Path, help="output folder (default: RUN/export/CLIENT, RUN/global, RUN/global-mean-b)"
    )
    add_changed_data(export)
    export.set_defaults(call=_export)


def _add_report(commands: Commands) -> None:
    report = commands.add_parser("report", help="write the report of a run, or of two runs side by side")
    report.add_argument("run_dir", type=Path)
    report.add_argument("other", type=Path, nargs="?", help="a second run, to compare with the first")
    report.add_argument(
        "--to",
        type=Path,
        metavar="FILE",
        help="output file for two runs (default: RUN-and-OTHER.html in this folder)",
    )
    report.set_defaults(call=_report)


def _evaluate(options: argparse.Namespace) -> Answer:
    from fedsa_lora.config.compose import read_config
    from fedsa_lora.runs.changed_data import check_data

    config = read_config(options.run_dir)
    if options.unlearning and (options.union or options.newcomer_steps is not None):
        raise ConfigError(
            "--unlearning cannot be combined with --union and --newcomer-steps: leave these out"
        )
    if options.retrained is not None and not options.unlearning:
        raise ConfigError("--retrained is the reference of --unlearning: give both, or neither")
    remark(check_data(options.run_dir, config, options.allow_changed_data))
    if options.unlearning:
        return _evaluate_unlearning(options)
    primary = config.task.measures[0]
    answer = {"run_dir": options.run_dir, "measure": primary.name, **_evaluate_clients(options, primary)}
    if not options.union and options.newcomer_steps is None:
        return Answer(0, answer)
    return Answer(0, answer | _evaluate_further(options, primary))


def _evaluate_clients(options: argparse.Namespace, primary: Measure) -> dict[str, Any]:
    """Each client's own model on its own part, now and in the run."""
    from fedsa_lora.analysis.reevaluate import reevaluate
    from fedsa_lora.report.wording import NOT_MEASURED

    table = Table(title=f"personalised {primary.words} on each client's test examples")
    for column in ("client", "examples", f"{primary.words} now", "in the run"):
        table.add_column(column, justify="right")
    rows = list(reevaluate(options.run_dir, allow_changed_data=True))
    for row in rows:
        values = [NOT_MEASURED if value is None else f"{value:.4f}" for value in (row.value, row.recorded)]
        table.add_row(row.client, str(row.examples), *values)
    console.print(table)
    return {"clients": [asdict(row) for row in rows]}


def _evaluate_further(options: argparse.Namespace, primary: Measure) -> dict[str, Any]:
    """The models on all clients' parts together, and clients as newcomers, where that was asked for."""
    from fedsa_lora.analysis.evaluation import evaluate_run
    from fedsa_lora.report.wording import shown
    from fedsa_lora.runs.reading import EVALUATION

    found = evaluate_run(options.run_dir, options.union, options.newcomer_steps, allow_changed_data=True)
    measured: dict[str, Any] = {name: found[name] for name in ("union", "newcomer") if name in found}
    for name, of_model in measured.items():
        by_client = of_model[primary.name].values()
        mean = shown(sum(by_client) / len(by_client), primary)
        console.print(f"{name}: mean {primary.words} {mean}")
    console.print(f"written: {escape(str(options.run_dir / EVALUATION))}")
    return measured


def _evaluate_unlearning(options: argparse.Namespace) -> Answer:
    from fedsa_lora.analysis.unlearning import evaluate_unlearning
    from fedsa_lora.report.forgotten import unlearning_lines
    from fedsa_lora.runs.reading import UNLEARNING

    found = evaluate_unlearning(options.run_dir, options.retrained)
    table = Table("what", "measured", title=f"unlearning by {found['method']}")
    for row in unlearning_lines(found):
        table.add_row(*row)
    console.print(table)
    console.print(f"written: {escape(str(options.run_dir / UNLEARNING))}")
    return Answer(0, {"run_dir": options.run_dir, "unlearning": found})


def _export(options: argparse.Namespace) -> int:
    from fedsa_lora.config.compose import read_config
    from fedsa_lora.runs.clients import refuse_unknown

    config = read_config(options.run_dir)
    if options.mean_b and not options.of_all:
        raise ConfigError(
            "--mean-b is a mean over clients, which goes with --global: leave out one of the two"
        )
    if options.store is not None:
        config = replace(config, run=replace(config.run, store=str(options.store)))
    if not options.of_all:
        refuse_unknown(config, options.client)

    # what trains takes seconds to load, and faults of the command need none of it
    from fedsa_lora.analysis.export import Exporter
    from fedsa_lora.runs.changed_data import check_classes
    from fedsa_lora.runs.directory import RunDirectory
    from fedsa_lora.server.build import skeleton

    check_classes(options.run_dir, config)
    directory = RunDirectory(options.run_dir.resolve(), config)
    exporter = Exporter(config, directory, skeleton(config))
    if options.of_all:
        return _export_of_all(options, exporter)
    folder = options.to or options.run_dir / "export" / options.client
    exporter.export(options.client, folder, merge=options.merge)
    console.print(f"written: {escape(str(folder))}")
    return 0


def _export_of_all(options: argparse.Namespace, exporter: Exporter) -> int:
    """Write and measure the one model for all clients that was asked for."""
    from fedsa_lora.analysis.global_model import GLOBAL, MEAN, export_global, export_mean
    from fedsa_lora.runs.changed_data import check_data

    remark(check_data(options.run_dir, exporter.config, options.allow_changed_data))
    if options.mean_b:
        folder, write = options.to or options.run_dir / MEAN, export_mean
    else:
        folder, write = options.to or options.run_dir / GLOBAL, export_global
    console.print(write(exporter, folder, merge=options.merge))
    console.print(f"written: {escape(str(folder))}")
    return 0


def _report(options: argparse.Namespace) -> int:
    if options.other is None:
        from fedsa_lora.report.page import write_report

        if options.to is not None:
            raise ConfigError(
                "--to is the output file for two runs: leave it out, or give a second run directory"
            )
        page = write_report(options.run_dir)
    else:
        from fedsa_lora.report.side_by_side import write_side_by_side

        names = [folder.resolve().name for folder in (options.run_dir, options.other)]
        page = write_side_by_side(
            options.run_dir, options.other, options.to or Path(f"{names[0]}-and-{names[1]}.html")
        )
    console.print(f"written: {escape(str(page))}", soft_wrap=True)
    return 0
