"""A column that changes its type after 11,000 rows: it is not asked for, so it is not looked at."""

from pathlib import Path

from case import SMOKE, fedsa, said

ROWS = 11_000
rows = [f"please fix number {i},{'it' if i % 2 else 'office'},{i}\n" for i in range(ROWS - 1)]
Path("data.csv").write_text(
    f"text,label,customer\n{''.join(rows)}please fix number {ROWS - 1},it,C{ROWS - 1}\n"
)

done = fedsa("run", "--dry-run", *SMOKE, "task.dataset=data.csv")
assert done.returncode == 0
assert f"rows {ROWS:,} train" in said(done), "the plan does not show all rows"
assert "classes 2: it, office" in said(done)

Path("data.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": "C2"}\n')
done = fedsa("run", "--dry-run", *SMOKE, "task.dataset=data.jsonl")
assert done.returncode == 1
for fact in ("data.jsonl, line 2", "column 'label'", "row 2", "'C2'", "write all alike"):
    assert fact in said(done), f"the column is asked for, and its fault does not name {fact}"
