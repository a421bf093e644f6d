"""A run that ended, or was interrupted, seen from outside: how far it came, and the record of its end where
it could not make one itself."""

from __future__ import annotations

import json
import logging
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fedsa_lora.errors import RunError
from fedsa_lora.files import locked, out_of_space, overwrite, room_in, write_atomically
from fedsa_lora.runs.metrics import ROUNDS, RunMetrics
from fedsa_lora.runs.reading import primary_in, read_json, read_jsonl
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


def gone(path: Path) -> str:
    """The reason of a run whose directory is not at its path any more."""
    return (
        f"{path} was deleted, moved or replaced while its run was in progress: put it back and resume the "
        f"run, or run it again"
    )


def stopped_after(path: Path) -> str:
    """Words how far a stopped run came."""
    planned = read_json(path / "status.json")["rounds"]
    done = last_whole_round(path)
    return f"stopped after round {done} of {planned}" if done else "stopped before its first round had ended"


def last_whole_round(path: Path) -> int:
    """The last round that a run recorded and kept a checkpoint of, to resume it from; 0 without."""
    kept = DirectoryStore(path, CHECKPOINTS, "").rounds()
    return max(recorded_rounds(path) & set(kept), default=0)


def recorded_rounds(path: Path) -> set[int]:
    """The numbers of the rounds that have a row."""
    rows = path / ROUNDS
    return {row["round"] for row in read_jsonl(rows)} if rows.is_file() else set()


def write_status(path: Path, content: dict[str, Any]) -> None:
    """Replace the ``status.json`` of a run directory. On a full disk, where a new one would need a block, the
    old one is overwritten in its own, with as much of the reason as fits.

    Raises RunError where it cannot be written, or a full disk has no old one.
    """
    status = path / "status.json"
    try:
        write_atomically(status, _json(content))
    except RunError as error:
        if not out_of_space(error):
            raise
        try:
            overwrite(status, _shortened(content, room_in(status)))
        except OSError:
            raise error from None


def _shortened(content: dict[str, Any], room: int) -> bytes:
    """A status as JSON of at most ``room`` bytes, as far as leaving out the end of its reason can do that."""
    while content["reason"] and len(_json(content)) > room:
        reason = content["reason"]
        content = content | {"reason": reason[: len(reason) * 3 // 4]}
    return _json(content)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def close(path: Path, state: Literal["failed", "stopped"], reason: str) -> bool:
    """Record in ``status.json`` and the metrics how a run ended that could not do so itself. False where
    there is none, it is complete, another process is at it, or it cannot be written, which is logged."""
    status, rows = path / "status.json", path / ROUNDS
    if not status.is_file():
        return False
    try:
        with alone(path):
            content = read_json(status)
            if content.get("state") == "completed":  # only a run itself takes that back, when it is extended
                return False
            content.pop("phase", None)
            content |= {"state": state, "reason": reason, "ended": now()}
            write_status(path, content)
            known = read_jsonl(rows) if rows.is_file() else []
            RunMetrics(path, content.get("rounds", 0), primary_in(path), known).publish(state)
    except RunError as error:
        log.error("the state of the run (%s) cannot be recorded: %s", state, error)
        return False
    return True


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
