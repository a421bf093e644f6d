"""Runs a federation on this machine, from certificates to the report; called by `make deploy-local`.

    python deploy/local.py

It starts a SuperLink with TLS and node authentication on loopback, registers two SuperNodes, checks them with
`fedsa-lora doctor`, trains three rounds on shipped data with names verified by keys, and stops everything,
also after an error. It writes to build/deploy-local.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from fedsa_lora.deployment.loopback import Loopback
from fedsa_lora.errors import FedSAError

NODES = ("0", "1")
FEW = [
    "experiment=quickstart", "name=deploy-local", "federation.rounds=3", "federation.train_examples=[16,24]",
    "federation.validation_examples=0", "federation.test_examples=21", "evaluation.every=3",
    "evaluation.local_only=false", "federation.clients=2",
]  # fmt: skip


def main() -> int:
    """Runs three rounds with two nodes. Returns exit code 0 only if every step succeeded."""
    run_dir = Path("build/deploy-local").resolve()
    shutil.rmtree(run_dir, ignore_errors=True)
    with Loopback(run_dir.with_name(f"{run_dir.name}-logs")) as federation:
        federation.superlink()
        for name in NODES:
            federation.register(name)
            federation.node(name)
        there = federation.connection
        trusted = ["--certificate", str(there.root_certificates)]
        if federation.submit("doctor", "--superlink", there.address, *trusted).wait():
            print(f"fedsa-lora doctor found errors: see {federation.logs / 'submit.log'}", file=sys.stderr)
            return 1
        run = federation.submit("run", *FEW, *federation.words, f"run.dir={run_dir}")
        if code := run.wait():
            print(f"the run failed: see {federation.logs}", file=sys.stderr)
            return code
        kept = [list(federation.store(name).glob("*/*/round-*.safetensors")) for name in NODES]
    if not all(kept) or (run_dir / "clients").exists() or not (run_dir / "report.html").is_file():
        print(f"no report, or B is not in the stores of the nodes: see {run_dir}", file=sys.stderr)
        return 1
    print(f"report: {run_dir / 'report.html'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FedSAError as error:
        sys.exit(f"{type(error).__name__}: {error}")
