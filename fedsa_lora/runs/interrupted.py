"""A run that ended, or was interrupted, seen from outside: how far it came, and the record of its end where
it could not make one itself."""

from __future__ import annotations

import json
import logging
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fedsa_lora.errors import RunError
from fedsa_lora.files import locked, write_atomically
from fedsa_lora.runs.metrics import ROUNDS, RunMetrics
from fedsa_lora.runs.reading import read_json, read_jsonl
from fedsa_lora.store import DirectoryStore

log = logging.getLogger("flwr")
CHECKPOINTS = "checkpoints"


def alone(path: Path) -> AbstractContextManager[None]:
    """This process alone writes a run. Raises RunError when another process does."""
    return locked(
        path,
        lambda holder: RunError(
            f"{path} is in use by {holder}: wait until its run has ended, or choose another run.dir"
        ),
    )


def stopped_after(path: Path) -> str:
    """How far a run came that was stopped."""
    planned = read_json(path / "status.json")["rounds"]
    done = last_whole_round(path)
    return f"stopped after round {done} of {planned}" if done else "stopped before its first round had ended"


def last_whole_round(path: Path) -> int:
    """The last round that a run recorded and kept a checkpoint of, to resume it from; 0 without."""
    rows = path / ROUNDS
    recorded = {row["round"] for row in read_jsonl(rows)} if rows.is_file() else set()
    kept = DirectoryStore(path, CHECKPOINTS, "").rounds()
    return max(recorded & set(kept), default=0)


def close(path: Path, state: Literal["failed", "stopped"], reason: str) -> bool:
    """Record in ``status.json`` and the metrics how a run ended that could not do so itself. False where
    there is none, another process is at it, or it cannot be written, which is logged."""
    status, rows = path / "status.json", path / ROUNDS
    if not status.is_file():
        return False
    try:
        with alone(path):
            content = read_json(status)
            content.pop("phase", None)
            content |= {"state": state, "reason": reason, "ended": now()}
            write_atomically(status, (json.dumps(content, indent=1) + "\n").encode())
            known = read_jsonl(rows) if rows.is_file() else []
            RunMetrics(path, content.get("rounds", 0), known).publish(state)
    except RunError as error:
        log.error("that the run %s cannot be recorded: %s", state, error)
        return False
    return True


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
