"""Run the cases of users' own files, checkpoints and stock tools in ``tests/cases``, each in a copy of its
folder.

A case is a folder with its input and a ``check.py`` whose exit status judges it. Usage:
``python scripts/check_cases.py [CASE ...]``, a case by its number or the beginning of its name;
``make cases`` runs all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = Path(__file__).resolve().parent.parent / "tests" / "cases"


def cases(beginnings: list[str]) -> list[Path]:
    """The folders with a check whose names begin so; all without any."""
    found = sorted(path.parent for path in CASES.glob("*/check.py"))
    return [folder for folder in found if not beginnings or folder.name.startswith(tuple(beginnings))]


def check(folder: Path) -> tuple[int, str]:
    """The exit status of a case's check, run in a copy of its folder, and what it printed."""
    with tempfile.TemporaryDirectory(prefix="fedsa-case-") as root:
        place = Path(shutil.copytree(folder, Path(root) / folder.name))
        done = subprocess.run(
            [sys.executable, "check.py"],
            cwd=place,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(CASES), os.environ.get("PYTHONPATH", "")])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return done.returncode, done.stdout


def main(beginnings: list[str]) -> int:
    chosen = cases(beginnings)
    failed = []
    for folder in chosen:
        started = time.monotonic()
        status, output = check(folder)
        print(
            f"{'ok' if status == 0 else 'FAILED':6} {folder.name} ({time.monotonic() - started:.0f} s)",
            flush=True,
        )
        if status:
            failed.append(folder.name)
            print("".join(f"    {line}\n" for line in output.splitlines()), flush=True)
    print(f"{len(chosen) - len(failed)} of {len(chosen)} cases as expected")
    return bool(failed) or not chosen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
