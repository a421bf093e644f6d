"""What the check of a case calls: the command line of this environment, in the folder of the case."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("fedsa-lora"))
SMOKE = ("experiment=smoke", "task=text", "federation.clients=3")
TRAINED = ("federation.rounds=2", "train.steps=8", "train.lr=3e-2", "run.dir=run")


def fedsa(*words: str, seconds: float = 900.0) -> subprocess.CompletedProcess[str]:
    """Run ``fedsa-lora`` with these words; standard output and standard error come back as one text."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [COMMAND, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    print(f"$ fedsa-lora {' '.join(words)}\n{done.stdout}exit code {done.returncode}\n", flush=True)
    return done


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command as one line without the borders of tables, which wrap where the screen ends."""
    return " ".join(done.stdout.replace("│", " ").split())
