"""Commands that make many runs: compare, advise."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fedsa_lora.commands.arguments import add_json, add_overrides, positive
from fedsa_lora.commands.screen import EXIT_FAILED, Answer, console
from fedsa_lora.stopping import stoppable

if TYPE_CHECKING:
    from fedsa_lora.commands.arguments import Commands
    from fedsa_lora.compare.advice import Probe


def add(commands: Commands) -> None:
    """Add the commands of this family."""
    _add_compare(commands.add_parser("compare", help="compare methods over regimes, as defined by a grid"))
    _add_advise(commands.add_parser("advise", help="recommend a split and head, from runs on your data"))


def _add_compare(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("grid", help="a name in conf/compare, or a YAML file (docs/compare.md)")
    add_overrides(compare, "your settings instead of the grid's regimes, without those that its methods set")
    compare.add_argument(
        "--quick", action="store_true", help="only the quick part of the grid, for a first look"
    )
    begin = compare.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="resume where it stopped, and retry failed runs")
    begin.add_argument("--restart", action="store_true", help="discard the recorded runs and start over")
    begin.add_argument("--recorded", action="store_true", help="run nothing, show the recorded runs")
    _add_processes(compare)
    add_json(compare)
    compare.add_argument("--to", type=Path, help="output folder (default: runs/compare-GRID)")
    compare.add_argument(
        "--record",
        type=Path,
        help="file of recorded runs, which several grids may share (default: runs.jsonl there)",
    )
    compare.set_defaults(call=_compare)


def _add_advise(advise: argparse.ArgumentParser) -> None:
    add_overrides(advise, "as for run: your task and partition, but no split")
    advise.add_argument(
        "--rounds",
        type=positive,
        help="rounds of each run; fewer are quicker (default: those of your settings)",
    )
    _add_processes(advise)
    add_json(advise)
    advise.set_defaults(call=_advise)


def _add_processes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--processes", type=positive, help="parallel runs (default: as cores and memory allow)"
    )


def _compare(options: argparse.Namespace) -> Answer:
    from hashlib import sha256

    from fedsa_lora.compare.grid import YOURS, read_grid
    from fedsa_lora.compare.on_config import on_config

    grid, name = read_grid(options.grid), Path(options.grid).stem
    if options.quick:
        grid, name = grid.quickly(), f"{name}-quick"
    if options.overrides:
        grid = on_config(grid, options.overrides)
        name += f"-{sha256(grid.regimes[YOURS].encode()).hexdigest()[:8]}"
    folder = options.to or Path("runs") / f"compare-{name}"

    from fedsa_lora.compare.comparison import Comparison  # no grid needs it to be refused

    if options.recorded:
        comparison = Comparison.recorded(grid, folder, options.record)
    else:
        comparison = Comparison.to_run(grid, name, folder, options.record)
        with stoppable(comparison.stopped):
            comparison.run(options.processes, console, options.resume, options.restart)
    complete = comparison.write()
    for line in [*comparison.notes, *comparison.failures(), *comparison.verdicts()]:
        console.print(escape(line), soft_wrap=True)
    console.print(f"written: {escape(str(comparison.folder / 'table.md'))}", soft_wrap=True)
    return Answer(
        0 if complete else EXIT_FAILED,
        {
            "folder": comparison.folder,
            "complete": complete,
            "missing": comparison.missing(),
            "notes": comparison.notes,
            "failures": comparison.failures(),
            "verdicts": comparison.verdicts(),
            "rows": comparison.rows(),
        },
    )


def _advise(options: argparse.Namespace) -> Answer:
    from fedsa_lora.compare.advice import advise
    from fedsa_lora.compare.probe import command, probe, probe_folder, probe_grid, regime
    from fedsa_lora.config.from_file import overrides_of
    from fedsa_lora.report.tables import evidence_table, two_columns

    words = overrides_of(options.overrides, without=("split", "head", "train.lr"))
    grid = probe_grid(words, options.rounds)
    folder = probe_folder(grid)
    console.print(two_columns("candidates and data", regime(grid) | {"recorded in": str(folder)}))
    with stoppable(lambda: f"stopped; the same command resumes with the runs in {folder}"):
        evidence = probe(grid, folder, options.processes, console)
    advice = advise(evidence)
    console.print(evidence_table(evidence, advice))
    for reason in advice.reasons:
        console.print(escape(reason), soft_wrap=True)
    told = None if advice.chosen is None else command(grid, advice.chosen)
    if told is not None:
        console.print(escape(told), style="bold", soft_wrap=True, highlight=False)
    return Answer(
        0,
        {
            "folder": folder,
            "chosen": None if advice.chosen is None else advice.chosen.name,
            "command": told,
            "reasons": advice.reasons,
            "measure": evidence.measure.name,
            "candidates": [_candidate(probe) for probe in evidence.probes.values()],
        },
    )


def _candidate(probe: Probe) -> dict[str, Any]:
    return {
        "method": probe.name,
        "overrides": probe.words,
        "lr": probe.lr,
        "mean": probe.mean,
        "bytes_up_per_client_round": probe.bytes_up,
    }
