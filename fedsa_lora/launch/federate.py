"""A run through the real ``flwr run``: stage the app, follow it on the screen, report how it ended."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedsa_lora.config.compose import to_yaml
from fedsa_lora.config.options import CONF, PACKAGE, Options
from fedsa_lora.config.paths import places
from fedsa_lora.errors import RunError, StoppedError
from fedsa_lora.files import Held, writing
from fedsa_lora.launch.connection import Connection
from fedsa_lora.launch.flower_log import rounds_begun, said_complete, still_starting
from fedsa_lora.launch.flower_run import FlowerRun, Outcome
from fedsa_lora.launch.local_run import LocalRun
from fedsa_lora.launch.resuming import is_complete, last_file
from fedsa_lora.launch.size import Processes, Simulation
from fedsa_lora.report.page import write_report
from fedsa_lora.report.wording import amount, counted, duration, shown
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.interrupted import close, gone, last_whole_round, stopped_after
from fedsa_lora.runs.outcomes import failures
from fedsa_lora.runs.place import make, refuse_used
from fedsa_lora.runs.progress import RunProgress
from fedsa_lora.runs.reading import APP, Row, holds_run, read_json
from fedsa_lora.settings import RunConfig
from fedsa_lora.simulation import SIMULATION
from fedsa_lora.stopping import TERMINATED, stoppable

FLOWER_LOG = Path("logs", "flower.log")
Place = Processes | Simulation | Connection  # where the clients of a run are


def stage_app(folder: Path) -> Path:
    """Copy what a Flower bundle takes of the app into a folder: code, config and project file. Nodes compose
    with the config files of the bundle, so the user's own are among them.

    A run keeps what it ran, and neither a checkout's other files nor an edit during the run get in.
    """
    only = shutil.ignore_patterns("__pycache__", "*.parquet", "*.pyc")
    code = shutil.ignore_patterns("__pycache__", "*.parquet", "*.pyc", CONF.name)  # a wheel has it inside
    with writing(folder):
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=code, dirs_exist_ok=True)
        for source in (PACKAGE.parent / "strategies", CONF):
            shutil.copytree(source, folder / source.name, ignore=only, dirs_exist_ok=True)
        for name, path in Options.here().added():
            (folder / CONF.name / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / CONF.name / name)
        projects = (PACKAGE / "pyproject.toml", PACKAGE.parent / "pyproject.toml")
        shutil.copy(next(path for path in projects if path.is_file()), folder / "pyproject.toml")
        for extra in ("README.md", "LICENSE"):
            if (PACKAGE.parent / extra).is_file():
                shutil.copy(PACKAGE.parent / extra, folder / extra)
    return folder


def federate(config: RunConfig, overrides: Sequence[str], place: Place, console: Console) -> bool:
    """Run the federation to its end. Returns whether its run directory is on this machine: that of a deployed
    run is where the SuperLink is.

    Raises RunError with the reason when it did not complete, StoppedError when it was stopped.
    """
    run_dir, here = config.run_dir, not isinstance(place, Connection)
    if not config.run.resume:
        refuse_used(run_dir)
        if here:
            RunDirectory.announce(config)
        else:
            make(run_dir)
    with closing(Held(run_dir)) as begun:
        try:
            outcome = _follow(config, overrides, place, console, begun)
        except StoppedError:
            raise
        except BaseException as error:
            end(begun, "failed", f"{type(error).__name__}: {error}", config.run.report)
            raise
        if outcome.state == "stopped":
            raise StoppedError(stopped(begun, overrides, config.run.report), TERMINATED)
        if not begun.in_place():
            raise RunError(_lost(run_dir, here))
        rounds = config.federation.rounds
        if reason := failure(run_dir, outcome, last_file(config), here, rounds):
            end(begun, "failed", reason, config.run.report)
            raise RunError(_failed(config, reason))
    return (run_dir / "status.json").is_file()


def _follow(
    config: RunConfig, overrides: Sequence[str], place: Place, console: Console, begun: Held
) -> Outcome:
    """Start a run in the directory that has begun, and show its progress until it ends."""
    run_dir, logs = config.run_dir, config.run_dir / "logs"
    text = shlex.join([*overrides, *places(config)])
    with writing(logs):
        logs.mkdir(exist_ok=True)
    app = stage_app(run_dir / APP)
    rounds = config.federation.rounds
    with stoppable(lambda: stopped(begun, overrides, config.run.report)):
        if isinstance(place, Processes):  # forked before the progress line has a thread
            with (
                LocalRun(config, text, place, run_dir / FLOWER_LOG) as local,
                progress_line(console) as progress,
            ):
                return _shown(local, RunView(begun, rounds, progress))
        env = {"OMP_NUM_THREADS": str(config.machine.threads), SIMULATION: "1"}
        composed = ""  # nodes compose, as each allows
        if isinstance(place, Simulation):
            env |= place.env
            composed = to_yaml(config)
        with progress_line(console) as progress, FlowerRun(app, text, place, logs, env, composed) as run:
            return _shown(run, RunView(begun, rounds, progress))


def _shown(run: LocalRun | FlowerRun, view: RunView) -> Outcome:
    outcome = run.follow(view.update)
    view.update()
    return outcome


def _lost(run_dir: Path, here: bool) -> str:
    """The last words on a run whose directory is not in its place: nothing there is of that run."""
    if here:
        return f"the run failed, and its logs no longer exist\n{gone(run_dir)}"
    return (
        f"{run_dir} was deleted, moved or replaced, and with it the log of the run: see its run directory "
        f"on the SuperLink's machine"
    )


def _failed(config: RunConfig, reason: str) -> str:
    """The last words on a run that failed: where its logs are, why it failed, and what resumes it."""
    run_dir, reason = config.run_dir, reason.removeprefix("RunError: ")
    lines = [f"the run failed; its logs are in {run_dir / 'logs'}", reason]
    if last_whole_round(run_dir) >= config.federation.rounds:
        lines.append(
            f"all completed rounds are saved; after fixing the cause: fedsa-lora resume "
            f"{shlex.quote(str(run_dir))}"
        )
    return "\n".join(lines)


def stopped(begun: Held, overrides: Sequence[str], report: bool) -> str:
    """Close a run that was stopped, in the directory that it has begun in, as ``end`` does. Returns how far
    it came and the command that resumes it, or that starts it again."""
    run_dir = begun.path
    if not begun.in_place():
        return f"stopped; {gone(run_dir)}"
    if is_complete(run_dir):
        return f"stopped, but the run in {run_dir} was complete already"
    if not (run_dir / "status.json").is_file():
        return "stopped; if it had started, its run directory is on the SuperLink's machine"
    reason = stopped_after(run_dir)
    end(begun, "stopped", reason, report)
    if last_whole_round(run_dir):
        return f"{reason}; resume with: fedsa-lora resume {shlex.quote(str(run_dir))}"
    if not holds_run(run_dir):
        return f"{reason}; start it again with: {shlex.join(['fedsa-lora', 'run', *overrides])}"
    return f"{reason}: start it again, with another run.dir than {run_dir}"


def end(begun: Held, state: Literal["failed", "stopped"], reason: str, report: bool) -> None:
    """Record how a run ended that could not do so itself, where it has a ``report`` there as well; nothing in
    a directory that was put in the place of the one that it has begun in."""
    if begun.in_place() and close(begun.path, state, reason) and report:
        with suppress(RunError):  # of rows that cannot be read; the reason at hand matters more
            write_report(begun.path)


def failure(run_dir: Path, outcome: Outcome, last: str, here: bool = False, rounds: int = 0) -> str:
    """The reason why a run failed, or an empty text. Flower alone does not report it: it calls a run
    completed that called ``sys.exit``, so the run's own word, its ``rounds`` and the ``last`` file that it
    writes before that are asked for as well; its last word in the log, where they are on another machine and
    not ``here``."""
    status = run_dir / "status.json"
    if status.is_file():
        if outcome.state == "completed" and is_complete(run_dir, last, rounds):
            return ""
        state = read_json(status, ["state"])
        return (
            state.get("reason")
            or outcome.details
            or f"flwr reports {outcome.state}, the run {state['state']}"
        )
    if here:
        return outcome.details or gone(run_dir)
    if outcome.state == "completed" and said_complete(run_dir / FLOWER_LOG, outcome.log_begin):
        return ""
    return outcome.details or f"flwr reports {outcome.state}, the run has not started"


class RunView:
    """The progress line of a run, from the rows that the server writes; where they are on another machine,
    from its log. In a file or a pipe, where no line moves, a line for each round."""

    def __init__(self, begun: Held, rounds: int, progress: Progress) -> None:
        self.begun, self.rounds, self.progress = begun, rounds, progress
        self.run, self.log = RunProgress(begun.path), begun.path / FLOWER_LOG
        self.bar = progress.add_task("starting Flower", total=rounds, facts="")
        self._size, self._told = 0, self._newest()

    def update(self) -> None:
        """Show what was written since the last time, if it can be read: a view ends no run, and shows none
        that was put in its place."""
        if not self.begun.in_place():
            return
        with suppress(RunError):
            self.run.update()
        if done := self.run.done:
            metrics = self.run.metrics
            total = metrics.sums["bytes_up"] + metrics.sums["bytes_down"]
            primary = metrics.primary
            reached = shown(metrics.measured.get(primary.name), primary)
            facts = f"{primary.words} {reached}   sent {amount(total)}"
            self.progress.update(self.bar, completed=done, description=f"round {done}", facts=facts)
            self._tell()
        elif self._grew():
            if waiting := still_starting(self.log):
                self.progress.update(self.bar, description=waiting)
            elif round_ := min(rounds_begun(self.log), self.rounds):
                self.progress.update(self.bar, completed=round_ - 1, description=f"round {round_}")
                if not self.run.status and round_ > self._told:  # its rows are on another machine
                    self._told = round_
                    self._line(f"round {round_} of {self.rounds} has started")

    def _newest(self) -> int:
        return int(self.run.rounds[-1]["round"]) if self.run.rounds else 0

    def _tell(self) -> None:
        """A line for each round that has ended since the last time, also where it went back to one before."""
        for row in self.run.rounds:
            if row["round"] > min(self._told, self._newest()):
                self._line(f"round {row['round']} of {self.rounds}: {_round_in_words(row, self.run)}")
        self._told = self._newest()

    def _line(self, text: str) -> None:
        if self.progress.disable:
            self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _grew(self) -> bool:
        """True where the log has more than when it was last looked at."""
        size = self.log.stat().st_size if self.log.is_file() else 0
        grew, self._size = size != self._size, size
        return grew


def _round_in_words(row: Row, run: RunProgress) -> str:
    primary, lost = run.primary, len(failures(row))
    reached = row.get(primary.name)
    facts = [] if reached is None else [f"{primary.words} {shown(reached, primary)}"]
    facts.append(f"sent {amount((row.get('bytes_up') or 0) + (row.get('bytes_down') or 0))}")
    facts += [counted(lost, "failed answer")] * bool(lost)
    return ", ".join([*facts, duration(row.get("seconds"))])


def progress_line(console: Console, window: float = 30.0) -> Progress:
    """A line with a bar, facts, the time so far and the time left, by the speed of the last ``window`` s;
    nothing where no line can move."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=window,
        disable=not (console.is_terminal or console.is_jupyter),
    )
