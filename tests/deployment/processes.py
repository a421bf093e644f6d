"""What tests of deployed federations ask of their processes."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fedsa_lora.deployment.loopback import Loopback
from fedsa_lora.runs.reading import read_jsonl

WAIT_SECONDS = 900.0


def said(federation: Loopback, name: str) -> str:
    """What a process printed."""
    log = federation.logs / f"{name}.log"
    return log.read_text() if log.exists() else ""


def wait_for(what: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Wait until something holds, while a process lives."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not what():
        assert process.poll() is None, f"ended with {process.returncode}: {process.args}"
        assert time.monotonic() < deadline, f"waited in vain for {process.args}"
        time.sleep(0.2)


def finish(federation: Loopback, *words: str, folder: Path | None = None) -> None:
    """Run a command of the command line to its good end, in a folder."""
    code = federation.submit(*words, folder=folder).wait(WAIT_SECONDS)
    assert code == 0, said(federation, "submit")


def fits(run_dir: Path) -> dict[tuple[str, int], dict]:
    rows = read_jsonl(run_dir / "clients.jsonl")
    return {(row["client"], row["round"]): row for row in rows if row["phase"] == "fit"}


def rows(run_dir: Path) -> list[dict]:
    """Those of the rounds that are there."""
    path = run_dir / "rounds.jsonl"
    return read_jsonl(path) if path.exists() else []
