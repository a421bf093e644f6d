"""``evaluate`` and ``resume`` stop where the data are not those that the run was made on, and go on where
they are told to."""

import json
import shutil
from pathlib import Path

from case import fedsa, said


def stops(*words: str) -> None:
    done = fedsa(*words)
    assert done.returncode == 1, f"{words[0]} goes on with changed data"
    for part in ("data.csv differs from the data of run", "train rows", "clients", "--allow-changed-data"):
        assert part in said(done), f"{words[0]} does not say {part!r}"


shutil.copy("first.csv", "data.csv")
split = ("federation.clients=3", "federation.rounds=2", "run.report=false", "run.dir=run")
assert fedsa("run", "experiment=smoke", "task=text", "task.dataset=data.csv", *split).returncode == 0
recorded = json.loads(Path("run/data.json").read_text())
assert recorded["parts"]["train rows"]["count"] == 160, recorded

same = fedsa("evaluate", "run")
assert same.returncode == 0, "the same data are refused"
assert "data.csv" not in said(same), "the same data are remarked on"

header, first, *rows = Path("first.csv").read_text().splitlines(keepends=True)
Path("data.csv").write_text("".join([header, *rows, first]))  # the same rows in another order
stops("evaluate", "run")
stops("evaluate", "run", "--union")
stops("resume", "run", "federation.rounds=3", "--allow-changes")
assert len(Path("run/rounds.jsonl").read_text().splitlines()) == 2, "a round was made on changed data"
assert json.loads(Path("run/data.json").read_text()) == recorded, "the digest of the run was overwritten"

told = fedsa("evaluate", "run", "--allow-changed-data")
assert told.returncode == 0, "evaluate cannot be told to go on"
assert "changed since run was made on it, which is allowed" in said(told), (
    "what is allowed is not remarked on"
)
longer = fedsa("resume", "run", "federation.rounds=3", "--allow-changes", "--allow-changed-data")
assert longer.returncode == 0, "resume cannot be told to go on"
assert len(Path("run/rounds.jsonl").read_text().splitlines()) == 3
notes = json.loads(Path("run/partition.json").read_text())["notes"]
assert any("resumed after round 2" in note and "changed" in note for note in notes), notes

Path("run/data.json").unlink()  # as versions before this one left a run
old = fedsa("evaluate", "run")
assert old.returncode == 0, "a run without a digest is refused"
assert "recorded no digest" in said(old), "a run without a digest is not remarked on"
