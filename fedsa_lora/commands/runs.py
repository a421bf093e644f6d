"""Commands that make a run, and follow it: run, watch, resume."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fedsa_lora.commands.arguments import add_changed_data, add_json, add_overrides
from fedsa_lora.commands.screen import EXIT_FAILED, Answer, console, remark
from fedsa_lora.config.changes import changes
from fedsa_lora.stopping import INTERRUPTED, TERMINATED, stoppable

if TYPE_CHECKING:
    from fedsa_lora.commands.arguments import Commands
    from fedsa_lora.launch.plan import Plan
    from fedsa_lora.settings import RunConfig


def add(commands: Commands) -> None:
    """Add the commands of this family."""
    run = commands.add_parser(
        "run", help="run a federation: a simulation here, or a deployment through `flwr run`"
    )
    add_overrides(run, "e.g. split=share_b train.lr=2e-3")
    run.add_argument("--dry-run", action="store_true", help="print the plan and exit")
    add_json(run)
    run.set_defaults(call=_run)
    watch = commands.add_parser("watch", help="follow a run: rounds, clients, warnings, time left")
    watch.add_argument("run_dir", type=Path)
    watch.add_argument("--once", action="store_true", help="print the current state and exit")
    watch.set_defaults(call=_watch)
    resume = commands.add_parser(
        "resume", help="resume an interrupted run, bit-identical to an uninterrupted one"
    )
    resume.add_argument("run_dir", type=Path)
    resume.add_argument("overrides", nargs="*", help="settings to change, e.g. federation.rounds=24")
    resume.add_argument(
        "--allow-changes", action="store_true", help="allow changes of rounds, evaluation, machine or logging"
    )
    add_changed_data(resume)
    add_json(resume)
    resume.set_defaults(call=_resume)


def _run(options: argparse.Namespace) -> Answer:
    from fedsa_lora.config.compose import load
    from fedsa_lora.config.from_file import overrides_of
    from fedsa_lora.launch.first_look import first_look
    from fedsa_lora.runs.place import new_run_dir

    overrides = overrides_of(options.overrides)
    config = load(overrides, default_dir=str(new_run_dir(load(overrides).name)))
    first_look(config)
    # what trains is loaded once there is something to train: what was wrong so far is reported without it
    from fedsa_lora.launch.plan import make_plan
    from fedsa_lora.report.tables import plan_tables

    plan, changed = make_plan(config), changes(overrides)
    for table in plan_tables(config, plan, changed):
        console.print(table)
    if options.dry_run:
        return Answer(0, _planned(config, plan) | {"changes": changed})
    return _federate(config, overrides, plan)


def _planned(config: RunConfig, plan: Plan) -> dict[str, Any]:
    return {
        "run_dir": config.run_dir,
        "state": "planned",
        "title": config.title,
        "parameters": plan.parameters,
        "trained": plan.trained,
        "bytes_up_per_client_round": plan.bytes_up,
        "train_examples": {name: share.train for name, share in plan.federation.clients.items()},
        "machine": plan.machine,
        "config": config.resolved,
    }


def _federate(config: RunConfig, overrides: Sequence[str], plan: Plan) -> Answer:
    from fedsa_lora.launch.federate import federate

    if federate(config, overrides, plan.place, console):
        return _completed(config.run_dir)
    console.print(f"the report is on the SuperLink's machine: {escape(str(config.run_dir))}")
    found = {"run_dir": config.run_dir, "state": "completed", "report": None, "summary": None}
    return Answer(0, found)


def _completed(run_dir: Path) -> Answer:
    """Print the summary of a run that is complete here, and answer with it."""
    from fedsa_lora.report.table import print_summary
    from fedsa_lora.runs.reading import REPORT, read_run

    print_summary(run_dir, console)
    report = run_dir / REPORT if (run_dir / REPORT).is_file() else None
    summary = read_run(run_dir).summary
    return Answer(0, {"run_dir": run_dir, "state": "completed", "report": report, "summary": summary})


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
        print("no longer watched; the run continues", file=sys.stderr)
        return INTERRUPTED
    print_summary(options.run_dir, console)
    return codes.get(progress.state, 0)


def _resume(options: argparse.Namespace) -> Answer:
    from fedsa_lora.launch.resuming import to_resume

    config, words = to_resume(
        options.run_dir, options.overrides, options.allow_changes, options.allow_changed_data
    )

    # what trains takes seconds to load, and faults of the command need none of it
    from fedsa_lora.files import Held
    from fedsa_lora.launch.federate import stopped
    from fedsa_lora.launch.plan import make_plan
    from fedsa_lora.runs.changed_data import check_data
    from fedsa_lora.server.finish import finish_interrupted

    remark(check_data(options.run_dir, config, options.allow_changed_data))
    report = config.run.report
    with closing(Held(config.run_dir)) as begun, stoppable(lambda: stopped(begun, words, report)):
        if finish_interrupted(config, words):  # without Flower: no client is asked
            return _completed(config.run_dir)
    return _federate(config, words, make_plan(config))
