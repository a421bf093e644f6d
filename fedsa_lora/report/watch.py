"""A live view of a run in the terminal: ``fedsa-lora watch RUN``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import datetime

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedsa_lora.errors import printable
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.report.wording import NOT_MEASURED, amount, counted, duration, moment, number, shown
from fedsa_lora.runs.metrics import FINISHING
from fedsa_lora.runs.outcomes import FAILURES, failures
from fedsa_lora.runs.progress import STARTING, ClientSeen, RunProgress
from fedsa_lora.runs.reading import Row

POLL_SECONDS = 1.0
FEWEST, OTHER_LINES = 3, 11  # rows of a table at least; lines of the screen that are in no table
STYLES = {"completed": "bold green", "failed": "bold red", "stopped": "bold yellow", "running": "bold"}


def follow(progress: RunProgress, console: Console) -> None:
    """Show a run until it ends, and leave the last view on the screen."""
    on_screen = console.is_terminal
    with Live(console=console, screen=on_screen, transient=True, auto_refresh=False) as live:
        while progress.state in (STARTING, "running"):
            live.update(view(progress, console), refresh=on_screen)
            time.sleep(POLL_SECONDS)
            progress.update()
    console.print(view(progress, console))


def view(progress: RunProgress, console: Console) -> RenderableType:
    """A run as it stands, in the size of the console."""
    beside = console.width >= 140
    rows = max(FEWEST, (console.height - OTHER_LINES) // (1 if beside else 2) - 3)
    tables = [table for table in (_rounds(progress, rows), _clients(progress, rows)) if table.row_count]
    warnings = list(_warnings(progress, 4))
    return Group(*_header(progress), Columns(tables, padding=(0, 2)) if beside else Group(*tables), *warnings)


def _header(progress: RunProgress) -> Iterator[RenderableType]:
    metrics = progress.metrics
    yield _line(str(progress.status.get("title") or progress.run_dir.name), "bold")
    if progress.changes:
        yield _line("changed: " + " ".join(f"{key}={value}" for key, value in progress.changes.items()))
    yield _line(_state(progress), "bold yellow" if progress.quiet else STYLES.get(progress.state, ""))
    bar = Table.grid(padding=(0, 1))
    left = "" if progress.left is None else f"left {duration(progress.left)}"
    planned = metrics.planned or None
    bar.add_row(
        Text(f"round {progress.done} of {planned or NOT_MEASURED}"),
        ProgressBar(total=planned or 1, completed=progress.done, width=24),
        Text(left),
    )
    yield bar
    traffic = f"{amount(metrics.sums['bytes_up'])} up, {amount(metrics.sums['bytes_down'])} down"
    lost = ", ".join(f"{metrics.failures[kind]} {kind}" for kind in FAILURES if metrics.failures[kind])
    primary = progress.primary
    value = shown(metrics.measured.get(primary.name), primary)
    yield _line(f"{primary.words} {value} · sent {traffic} · failures: {lost or 'none'}")


def _state(progress: RunProgress) -> str:
    status = progress.status
    if progress.quiet:
        since = datetime.fromtimestamp(progress.moved).astimezone().isoformat()
        waited = duration(time.time() - progress.moved)
        return (
            f"{progress.state}, but without progress since {moment(since)} ({waited}): perhaps it was killed"
        )
    if progress.state == STARTING:
        return "starting Flower and Ray"
    if status.get("phase") == FINISHING:
        return "running: every round is done, the results are being written"
    return f"{progress.state}, begun {moment(status.get('started'))}, {duration(progress.seconds)}"


def _rounds(progress: RunProgress, rows: int) -> Table:
    primary = progress.primary
    columns = ("round", primary.words, "worst", "loss", "time", "sent", "clients", "failures")
    table = _table("last rounds", *columns)
    for row in list(progress.rounds)[-rows:]:
        sent = (row.get("bytes_up") or 0) + (row.get("bytes_down") or 0)
        table.add_row(
            str(row.get("round")),
            shown(row.get(primary.name), primary),
            shown(row.get(primary.worst), primary),
            number(row.get("loss")),
            duration(row.get("seconds")),
            amount(sent),
            _shown(row, "fit_clients"),
            str(len(failures(row))),
        )
    return table


def _clients(progress: RunProgress, rows: int) -> Table:
    primary = progress.primary
    known = sorted(
        progress.clients.items(), key=lambda item: (_merit(item[1], primary), len(item[0]), item[0])
    )
    extreme = "lowest" if primary.higher_is_better else "highest"
    more = f", the {extreme} {rows} of {len(known)}" if len(known) > rows else ""
    table = _table(f"clients{more}", "client", primary.words, "rounds", "failures", "last answer")
    for name, seen in known[:rows]:
        ago = _ago(seen.time) if progress.state == "running" else ""
        table.add_row(
            Text(printable(name)),
            shown(seen.value, primary),
            str(seen.answers),
            str(seen.failures),
            f"round {seen.round}{ago}" if seen.round else "-",
        )
    return table


def _merit(seen: ClientSeen, measure: Measure) -> float:
    return -math.inf if seen.value is None else measure.merit(seen.value)


def _warnings(progress: RunProgress, rows: int) -> Iterator[RenderableType]:
    if progress.warnings:
        yield _line(f"last of {counted(len(progress.warnings), 'warning')}", "bold")
    for row in list(progress.warnings)[-rows:]:
        where = "" if row.get("round") is None else f"round {row['round']}, {row.get('phase')}: "
        yield _line(f"{_clock(row.get('time'))} {where}{row.get('message')}", "yellow")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _shown(row: Row, key: str) -> str:
    return NOT_MEASURED if row.get(key) is None else str(row[key])


def _ago(iso: str | None) -> str:
    passed = None if iso is None else time.time() - datetime.fromisoformat(iso).timestamp()
    return "" if passed is None else f", {duration(passed)} ago"


def _clock(iso: str | None) -> str:
    return datetime.fromisoformat(iso).astimezone().strftime("%H:%M:%S") if iso else ""


def _line(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")
