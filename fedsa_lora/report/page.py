"""Turn a run directory into `report.html`: one file that needs nothing else to be read."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fedsa_lora.binding import PLUGINS
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.files import write_atomically
from fedsa_lora.report import chart, svg
from fedsa_lora.report.account import absences, cost, naming, what_left
from fedsa_lora.report.client_sections import MOST, client_sections
from fedsa_lora.report.page_figures import embedded_figures
from fedsa_lora.report.page_script import POLICY, SCRIPT
from fedsa_lora.report.page_style import STYLE
from fedsa_lora.report.page_tables import (
    afterwards_tables,
    changes_table,
    clients_table,
    measures_table,
    reached_table,
    remarks_table,
    rounds_table,
    uploads_table,
)
from fedsa_lora.report.recorded_config import own_packages, section, settings_of
from fedsa_lora.report.template import PAGE
from fedsa_lora.report.wording import (
    NOT_MEASURED,
    amount,
    counted,
    duration,
    left_out,
    moment,
    resumptions,
    shown,
    shown_gain,
    verdict,
)
from fedsa_lora.runs.outcomes import client_outcomes
from fedsa_lora.runs.reading import REPORT, Row, RunRecord, read_run

FILES = ("config.yaml", "summary.json", "rounds.csv", "clients.csv")  # that a page links to


@dataclass(frozen=True)
class Tile:
    """One number of the first screen."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Stopped:
    """The reason why the run has no regular end, and what there is all the same."""

    heading: str
    reason: str
    shown: str
    tone: str


def write_report(run_dir: Path, completed: bool = False, figures: dict[str, Figure] | None = None) -> Path:
    """Write `report.html` into the run directory, whole or not at all, and return its path.

    A run that failed or still runs is reported with what it has recorded. `completed`: the report is the last
    file but the status, which says "completed" once everything is there, so the report says it first.
    `figures`: those of `draw_all`, where the run is drawn already.
    """
    record = read_run(run_dir)
    if completed:
        record = replace(record, status=record.status | {"state": "completed", "reason": None})
    return write_atomically(run_dir / REPORT, render(record, figures).encode("utf-8"))


def render(record: RunRecord, figures: dict[str, Figure] | None = None) -> str:
    """The report of a run as HTML; every text of the run is escaped. `figures` are as in `write_report`."""
    return filled(PAGE, _content(record) | {"figures": embedded_figures(record, figures)})


def filled(template: str, content: dict[str, Any]) -> str:
    """A page in the style of reports, with their script, of a template and what it shows."""
    # What a run recorded holds names from foreign data sets: autoescape makes them inert.
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    # escaped quotes would break the style sheet and the script
    fixed = {"style": Markup(STYLE + svg.STYLE + chart.STYLE), "script": Markup(SCRIPT), "policy": POLICY}
    return page.from_string(template).render(content | fixed).strip() + "\n"


def _content(record: RunRecord) -> dict[str, Any]:
    summary, primary = record.summary, record.primary
    return {
        "state": record.status["state"],
        "title": run_title(record),
        "description": summary.get("description"),
        "changes": changes_table(record),
        "meta": _meta(record),
        "stopped": _stopped(record),
        "results": bool(summary),
        "verdict": verdict(summary, primary),
        "tiles": _tiles(summary, primary) if summary else [],
        "cost": cost(summary),
        "uploads": uploads_table(summary),
        "left": what_left(summary),
        "measure": primary.words.capitalize(),
        "reached": reached_table(summary, primary),
        "left_out": left_out(summary),
        "measures": measures_table(record),
        "afterwards": afterwards_tables(record),
        **_of_clients(record),
        "rounds": rounds_table(record.rounds, primary),
        "notes": [
            *record.partition.get("notes", []),
            *naming(section(settings_of(record.config), "federation")),
            *absences(record.rounds, len(record.partition.get("clients", {}))),
        ],
        "remarks": remarks_table(record),
        "config": record.config,
        "environment": _environment(record.environment),
        **_commands(record),
        "files": [name for name in FILES if (record.directory / name).is_file()],
        "directory": record.directory.resolve().name,
    }


def _environment(recorded: Row) -> Row:
    """The environment as it was recorded, without the command, and with resumptions in words."""
    found = {name: value for name, value in recorded.items() if name not in ("command", "resumed")}
    return found | {"resumed": words} if (words := resumptions(recorded)) else found


def _commands(record: RunRecord) -> dict[str, str]:
    """The commands that make the run again; where its config names the user's own code, with the variable
    that allows it."""
    packages = sorted(own_packages(settings_of(record.config)))
    allowed = f"{PLUGINS}={','.join(packages)} " if packages else ""
    command = record.environment.get("command", "")
    again = shlex.join(["fedsa-lora", "run", f"{record.directory.resolve().name}/config.yaml"])
    return {"command": command and allowed + command, "again": allowed + again}


def run_title(record: RunRecord) -> str:
    """The title of a run, also of one that ended without a summary, else its name, else that of its
    directory."""
    summary = record.summary
    title = summary.get("title") or record.status.get("title") or summary.get("name")
    return title or f"Run {record.directory.resolve().name}"


def _of_clients(record: RunRecord) -> dict[str, Any]:
    """The clients of a page: their table, and a section of each."""
    outcomes = client_outcomes(record)
    sections = client_sections(record, outcomes)
    links = {client: found.id for client, found in sections.items()}
    title = "Curve, measures and classes of each client"
    if len(sections) == MOST < len(outcomes):
        title = f"Curve, measures and classes of the {MOST} clients with the lowest gain"
    return {
        "clients": clients_table(outcomes, record.primary, links),
        "clients_title": f"{counted(len(outcomes), 'client')}, by id",
        "sections": list(sections.values()),
        "sections_title": title,
    }


def _meta(record: RunRecord) -> str:
    parts = [record.summary.get("name"), record.status.get("started") and moment(record.status["started"])]
    parts += [record.environment.get("device")]
    return " · ".join(str(part) for part in parts if part)


def _stopped(record: RunRecord) -> Stopped | None:
    count = len(record.rounds)
    shown = f"Below is what it recorded: {counted(count, 'round')}." if count else "It recorded no round."
    if record.status["state"] == "stopped":
        return Stopped("This run was stopped", record.status.get("reason") or "", shown, "unknown")
    if record.status["state"] == "failed":
        reason = record.status.get("reason") or "No reason was recorded; see the logs in the run directory."
        return Stopped("This run failed", reason, shown, "bad")
    if record.status["state"] == "running":
        return Stopped("This run had not ended when this report was written", "", shown, "unknown")
    return None


def _tiles(summary: Row, measure: Measure) -> list[Tile]:
    ours, alone = summary.get("personalised") or {}, summary.get("local_only") or {}
    harmed = summary.get("clients_harmed")
    compared = summary.get("clients_compared", summary.get("clients"))
    gain = shown_gain(summary.get("gain_over_local"), measure)

    def told(key: str, model: Row) -> str:
        return shown(model.get(key), measure)

    return [
        Tile(f"Mean {measure.words}", told("mean", ours), f"alone {told('mean', alone)}"),
        Tile("Worst client", told("worst", ours), f"worst alone {told('worst', alone)}"),
        Tile("Gain over alone", gain, "mean over clients"),
        Tile(
            "Clients harmed",
            NOT_MEASURED if harmed is None else f"{harmed} of {compared}",
            "worse off than alone",
        ),
        Tile("Sent up", amount(summary.get("bytes_up")), f"down {amount(summary.get('bytes_down'))}"),
        Tile("Time", duration(summary.get("seconds")), counted(summary.get("rounds", 0), "round")),
    ]
