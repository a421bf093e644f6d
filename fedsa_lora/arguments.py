"""Arguments of the commands of ``fedsa-lora``."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DESCRIPTION = """The command line: fedsa-lora run | resume | watch | compare | advise | evaluate | export |
certificates | node | doctor."""


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    main_parser = argparse.ArgumentParser(prog="fedsa-lora", description=DESCRIPTION)
    main_parser.add_argument("--version", action="version", version=f"fedsa-lora {version('fedsa-lora')}")
    commands = main_parser.add_subparsers(dest="command", required=True)
    _add_runs(commands)
    _add_results(commands)
    _add_compare(commands.add_parser("compare", help="compare methods in regimes, as a grid says"))
    _add_advise(commands.add_parser("advise", help="which split and head to use, by runs on your data"))
    _add_machines(commands)
    return main_parser


def _add_runs(commands: Commands) -> None:
    run = commands.add_parser("run", help="run a federation through `flwr run`: a simulation, or deployed")
    run.add_argument("overrides", nargs="*", help="Hydra overrides, e.g. split=share_b train.lr=2e-3")
    run.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    watch = commands.add_parser("watch", help="follow a run: rounds, clients, warnings, time left")
    watch.add_argument("run_dir", type=Path)
    watch.add_argument("--once", action="store_true", help="print how it stands now, and stop")
    resume = commands.add_parser("resume", help="go on with a run that was broken off, to the same bits")
    resume.add_argument("run_dir", type=Path)
    resume.add_argument("overrides", nargs="*", help="what changes, e.g. federation.rounds=24")
    resume.add_argument(
        "--allow-changes", action="store_true", help="of rounds, evaluation, machine or logging"
    )
    _add_changed_data(resume)


def _add_results(commands: Commands) -> None:
    evaluate = commands.add_parser("evaluate", help="evaluate every client of a finished run again")
    evaluate.add_argument("run_dir", type=Path)
    _add_changed_data(evaluate)
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


def _add_changed_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--allow-changed-data", action="store_true", help="although the data are not those of the run"
    )


def _add_machines(commands: Commands) -> None:
    certificates = commands.add_parser("certificates", help="make a federation's certificates and keys")
    certificates.add_argument("folder", type=Path)
    certificates.add_argument("--host", nargs="+", default=[], help="names and addresses of the SuperLink")
    certificates.add_argument(
        "--node", nargs="+", default=[], help="nodes, for a key and a line of the registry each"
    )
    certificates.add_argument(
        "--renew", action="store_true", help="the SuperLink's certificate now, by the same root"
    )
    commands.add_parser("node", help="run a SuperNode; takes the arguments of flower-supernode")
    _add_doctor(commands.add_parser("doctor", help="check this machine, and its part in a deployment"))


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


def _add_advise(advise: argparse.ArgumentParser) -> None:
    advise.add_argument("overrides", nargs="*", help="as for run: your task and partition, but no split")
    advise.add_argument("--rounds", type=_positive, help="of each run, to be quicker (default: all of yours)")
    _add_processes(advise)


def _add_processes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--processes", type=_positive, help="runs at the same time (default: as cores and memory allow)"
    )


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected at least 1")
    return number
