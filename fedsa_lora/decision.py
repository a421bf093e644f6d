"""Decisions that a run takes by measuring: taken once, kept in its directory, and used by all its processes
and whenever it is resumed, so that the same config and the same decisions give the same bits."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

from fedsa_lora.errors import RunError
from fedsa_lora.files import writing

DECISION = "decision.json"


def decided(folder: Path, measure: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The decisions of the run in ``folder``. The first process that asks for them measures and writes them
    down; others wait meanwhile. Raises RunError where the file cannot be written or is damaged."""
    path = folder / DECISION
    with writing(path), open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go of when the file is closed, or the process ends
        file.seek(0)
        text = file.read()
        if text:
            return _read(path, text)
        found = measure()
        file.write(json.dumps(found) + "\n")
        return found


def recorded(folder: Path) -> dict[str, str]:
    """The decisions that the run in ``folder`` took, none where there are none. Raises RunError for a damaged
    file."""
    path = folder / DECISION
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return _read(path, text) if text else {}


def _read(path: Path, text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RunError(
            f'{path} is damaged: expected an object of JSON, such as {{"attention": "eager"}}; remove it, '
            "and what it held is measured again",
            sent="the decisions of the run are damaged on its machine",
        )
    return {str(name): str(value) for name, value in found.items()}
