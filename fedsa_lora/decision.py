"""Decisions that a run takes on the machine where it begins: taken once, kept in its directory, and used by
all its processes and whenever it is resumed, so that the same config and the same decisions give
bit-identical results."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

from fedsa_lora.errors import RunError
from fedsa_lora.files import writing
from fedsa_lora.settings import RunConfig

DECISION = "decision.json"
ATTENTION = "attention"
COHORT = "cohort"
BATCH = "batch_size"
TOKENS = "pass_tokens"


def decided(folder: Path, what: str, decide: Callable[[], str]) -> str:
    """A decision of the run in ``folder``. The first process that asks for it decides and writes it down;
    others wait meanwhile. Raises RunError where the file cannot be written or is damaged."""
    path = folder / DECISION
    with writing(path), open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go of when the file is closed, or the process ends
        file.seek(0)
        text = file.read()
        found = _read(path, text) if text else {}
        if what not in found:
            found[what] = decide()
            file.seek(0)
            file.truncate()
            file.write(json.dumps(found) + "\n")
        return found[what]


def recorded(folder: Path) -> dict[str, str]:
    """The decisions that the run in ``folder`` took, none where there are none. Raises RunError for a damaged
    file."""
    path = folder / DECISION
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return _read(path, text) if text else {}


def cohort_size(config: RunConfig) -> int:
    """The number of clients whose jobs are done in one pass: as the config says, or as the run decided; one
    where neither does. Raises RunError as ``recorded`` does."""
    if config.machine.cohort is not None:
        return config.machine.cohort
    return number(config.run_dir, COHORT, recorded(config.run_dir).get(COHORT, "1"))


def number(folder: Path, what: str, found: str) -> int:
    """A decision that is a number of at least 1. Raises RunError where it is none."""
    if not found.isdigit() or int(found) < 1:
        raise RunError(
            f"{folder / DECISION}: {what} is {found!r}, expected a number of at least 1",
            sent="the recorded decisions of the run are corrupted on its machine",
        )
    return int(found)


def _read(path: Path, text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RunError(
            f'{path} is corrupted: expected a JSON object, such as {{"attention": "eager"}}; remove it, '
            "and its values are measured again",
            sent="the recorded decisions of the run are corrupted on its machine",
        )
    return {str(name): str(value) for name, value in found.items()}
