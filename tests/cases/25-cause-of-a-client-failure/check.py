"""The cause of a client's failure and its remedy are the last lines on the screen, once, without wrappers."""

import json
import re
import subprocess
from pathlib import Path

from case import fedsa

RAY_AND_FLOWER = (
    "ray::",
    "ray.exceptions",
    "ClientAppException",
    "<class '",
    "object at 0x",
    "actor_id",
    "^^^",
)


def ends_with(done: subprocess.CompletedProcess[str], cause: str, run: str) -> str:
    """The last line of a failed run, after looking at it on the screen, in the status and in the report."""
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 1, f"exit code {done.returncode}"
    assert re.match(cause, last), f"the last line is not the cause: {last!r}"
    assert done.stdout.count(last) == 1, "the cause stands there more than once"
    reason = json.loads(Path(run, "status.json").read_text())["reason"]
    report = Path(run, "report.html").read_text()
    for text, where in ((done.stdout, "on the screen"), (reason, "in the status"), (report, "in the report")):
        found = [word for word in RAY_AND_FLOWER if word in text]
        assert not found, f"{found} {where}"
    assert last in reason, "the status has another cause"
    return last


COMMON = (
    "experiment=smoke",
    "task=text",
    "task.dataset=data.csv",
    "federation.clients=2",
    "federation.rounds=2",
)
WILD = ("train.lr=1e9", "train.clip_norm=null", "train.optimizer=sgd", "train.head_lr=null")

# All clients: the loss is nan.
lost = fedsa("run", *COMMON, *WILD, "run.dir=run")
line = ends_with(
    lost, r"client 0: TrainingError: the loss became nan at step \d of 3: lower train\.lr ", "run"
)
assert re.search(r"\(and 1 more: 1\)$", line), "the other client has the same cause: one line counts both"
watched = fedsa("watch", "run", "--once")
assert watched.returncode == 1, "a failed run is no success to those who watch it"
assert watched.stdout.strip().splitlines()[-1] == line, "watch ends with another line"

# Before a client has said who it is: the model of the actors is gone, because their store cannot be written.
Path("store").write_text("a file where a folder should be")
refused = fedsa("run", *COMMON, "run.store=store", "run.dir=refused")
ends_with(refused, r"(client 0: |node \d+ failed before it reported its client id: )\w+: ", "refused")
