"""Whole numbers that pandas wrote as 1.0 are the classes 1, 2, 3, 10; a fraction is none."""

from pathlib import Path

from case import SMOKE, fedsa, said

done = fedsa("run", "--dry-run", *SMOKE, "task.dataset=data.csv")
assert done.returncode == 0
assert "classes 4: 1, 2, 3, 10" in said(done)

text = Path("data.csv").read_text()
Path("half.csv").write_text(text.replace(",10.0\n", ",1.5\n", 1))
done = fedsa("run", "--dry-run", *SMOKE, "task.dataset=half.csv")
assert done.returncode == 1
for fact in ("half.csv, line 3", "column 'label'", "row 2", "1.5", "round it"):
    assert fact in said(done), f"the fault does not name {fact}"
