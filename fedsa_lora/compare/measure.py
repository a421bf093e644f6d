"""One run of a federation in this process, measured: what a comparison is made of."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fedsa_lora.analysis.reevaluate import reevaluate
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import DataError
from fedsa_lora.launch.plan import LARGEST_COHORT
from fedsa_lora.runs.changed_data import recorded
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import Row, primary_in, read_json, read_jsonl


def attempt(overrides: Sequence[str], measure: Callable[[Path], Row], scratch: Path) -> Row:
    """Run a federation here, through the client and the strategy of ``flwr run``: a row with its ``result``,
    by ``measure`` of the run directory, or with the ``error`` that ended it. The run directory is in
    ``scratch`` and is removed."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        with _quiet():
            words = [f"machine.cohort={LARGEST_COHORT}", *overrides, f"run.dir={folder / 'run'}"]
            return {"result": measure(run_in_process(words))}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Only the errors of Flower's log, and no warnings: they would tear the progress line."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.setLevel(level)


def measured(run_dir: Path) -> Row:
    """Measures a finished run."""
    rows, rounds = read_jsonl(run_dir / "clients.jsonl"), read_jsonl(run_dir / "rounds.jsonl")
    fits = [row for row in rows if row["phase"] == "fit"]
    primary = primary_in(run_dir)
    evaluated = [row for row in rows if row["phase"] == "evaluate" and row.get(primary.name) is not None]
    last = [row for row in evaluated if row["round"] == rounds[-1]["round"]]
    attack = read_json(run_dir / "summary.json")["attack"]
    data = recorded(run_dir)
    errors = [row["aggregation_error"] for row in rounds if row["aggregation_error"] is not None]
    return {
        "measure": asdict(primary),
        primary.name: {row["client"]: row[primary.name] for row in last},
        "majority": {row["client"]: row["majority"] for row in last if "majority" in row} or None,
        "validation": validation(run_dir),
        "bytes_up": sum(row["bytes_up"] for row in fits) / len(fits),
        "bytes_down": sum(row["bytes_down"] for row in fits) / len(fits),
        "aggregation_error": sum(errors) / len(errors) if errors else None,
        "seconds": sum(row["fit_seconds"] for row in rounds),
        "attack_success": attack["success"] if attack else None,
        "data": data.digest if data else None,
        "curve": [
            {
                "round": row["round"],
                primary.name: row[primary.name],
                "bytes": sum(f["bytes_up"] + f["bytes_down"] for f in fits if f["round"] <= row["round"]),
            }
            for row in rounds
            if row["evaluated"]
        ],
    }


def validation(run_dir: Path) -> dict[str, float]:
    """The primary measure by client on the validation part, of those that have one."""
    wanted = read_config(run_dir).federation.validation_examples
    if not wanted:
        return {}
    found = {row.client: row.value for row in reevaluate(run_dir, "validation")}
    known = {client: value for client, value in found.items() if value is not None}
    if not known:
        raise DataError(
            f"no client has validation examples, {wanted} of which federation.validation_examples asks for: "
            "give each client more rows"
        )
    return known
