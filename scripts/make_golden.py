"""Make `tests/golden/smoke.json` again: the smoke experiment's rows, as this version computes them.

Run it only after a change that is meant to change numbers, and say in the commit why they changed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "smoke.json"
WORDS = ("experiment=smoke", "evaluation.before_each=true")
KEPT = ("round", "client", "phase", "examples", "loss", "accuracy", "accuracy_before", "local_only", "tokens")


def golden_rows(run_dir: Path) -> list[dict[str, object]]:
    """The rows of clients, less times, bytes and digests."""
    return [{k: row[k] for k in KEPT if k in row} for row in read_jsonl(run_dir / "clients.jsonl")]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = golden_rows(run_in_process([*WORDS, f"run.dir={folder}/run"]))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"made_by": "scripts/make_golden.py", "rows": rows}, indent=1) + "\n")
    print(f"{len(rows)} rows written to {GOLDEN}")


if __name__ == "__main__":
    main()
