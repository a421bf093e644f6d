"""A real ``fedsa-lora run`` in a process of its own, that has ended a round and goes on."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import fedsa_lora


@contextmanager
def under_way(run: Path, words: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """The process of a run in the directory ``run``; what it says goes to its ``stderr``."""
    with subprocess.Popen(
        [sys.executable, "-m", "fedsa_lora.cli", "run", *words],
        env=os.environ | {"PYTHONPATH": str(Path(fedsa_lora.__file__).parents[1])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        while not (run / "rounds.jsonl").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        yield process
