"""The table on the screen at the end of a run."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsa_lora.errors import printable
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.report.wording import (
    amount,
    counted,
    duration,
    left_out,
    listed,
    of_clients,
    reached,
    under_attack,
    verdict,
)
from fedsa_lora.runs.outcomes import FAILURES, remarks
from fedsa_lora.runs.reading import REPORT, Row, RunRecord, holds_run, read_json, read_run

TONES = {"good": "bold green", "bad": "bold red"}


def print_summary(run_dir: Path, console: Console) -> None:
    """Print how a run ended: what was reached with its references, failures, bytes, seconds, and where the
    report is; of one that ended while Flower started, why."""
    if not holds_run(run_dir):
        print_reason(read_json(run_dir / "status.json", ["state"]), console)
        return
    record = read_run(run_dir)
    if record.summary:
        if record.summary.get("personalised"):
            console.print(_reached_table(record.summary, record.primary))
        judged = verdict(record.summary, record.primary)
        _line(
            console,
            f"Better together than alone? {judged.answer}. {judged.sentence}",
            TONES.get(judged.tone, "bold"),
        )
        for line in left_out(record.summary):
            _line(console, line)
        if told := _failures(record):
            _line(console, told, "bold yellow")
        if attack := record.summary.get("attack"):
            _line(console, f"Attack: {under_attack(attack, record.primary)}", TONES["bad"])
        _line(console, _cost(record.summary))
        if batch := record.summary.get("decisions", {}).get("batch_size"):
            _line(console, f"Batch size: {batch}, as the free memory allowed when the run began.")
    report = run_dir / REPORT
    _line(
        console, f"report: {report.resolve()}" if report.exists() else f"run directory: {run_dir.resolve()}"
    )
    if record.status["state"] not in ("running", "completed"):
        print_reason(record.status, console)


def print_reason(status: Row, console: Console) -> None:
    """Print why a run ended early, whole: its last lines are the cause and what to do."""
    reason = str(status.get("reason") or "no reason was recorded").removeprefix("RunError: ")
    if status["state"] == "stopped":
        _line(console, reason, "bold yellow")
    else:
        _line(console, f"the run failed: {reason}", "bold red")


def _reached_table(summary: Row, measure: Measure) -> Table:
    named = f"{measure.words.capitalize()} on own test examples"
    title = Text(str(summary.get("title") or summary.get("name") or named))
    table = Table(title=title, title_justify="left")
    changed = " ".join(f"{key}={value}" for key, value in (summary.get("changes") or {}).items())
    table.caption, table.caption_justify = Text(f"changed: {changed}") if changed else None, "left"
    table.add_column(f"{measure.words}{of_clients(summary)}")
    for name in ("mean", "weighted", "worst client"):
        table.add_column(name, justify="right")
    for row in reached(summary, measure):
        table.add_row(row.model, row.mean, row.weighted, Text(row.worst), style="bold" if row.ours else "")
    return table


def _failures(record: RunRecord) -> str:
    """Counts skipped rounds and failed answers, with the reasons; nothing where there are none."""
    skipped, lost = (record.summary.get(key, 0) for key in ("skipped_rounds", "failures"))
    counts = [f"{counted(skipped, 'round')} skipped"] * bool(skipped)
    counts += [f"{counted(lost, 'answer')} failed"] * bool(lost)
    if not counts:
        return ""
    from strategies.round.reasons import causes  # here: its package loads Flower

    why = causes(remark for remark in remarks(record) if remark.kind in FAILURES)
    told = f"{listed(counts)}, of {counted(record.summary['rounds'], 'round')}"
    return f"{told}: {'; '.join(why)}" if why else told


def _cost(summary: Row) -> str:
    sent = f"sent: {amount(summary.get('bytes_up'))} up, {amount(summary.get('bytes_down'))} down"
    return f"{sent} · time: {duration(summary.get('seconds'))}"


def _line(console: Console, text: str, style: str = "") -> None:
    """Print text as it is, line by line: no markup in names from data sets, nothing that steers the terminal,
    no line break within a path."""
    lines = printable(text, "\n")
    console.print(Text(lines, style=style), soft_wrap=True, highlight=False)
