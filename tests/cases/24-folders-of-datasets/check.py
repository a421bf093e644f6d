"""Folders of save_to_disk and clones of the hub are read; JSON by columns is refused in one line."""

from case import SMOKE, fedsa, said

for name in ("saved", "hub"):
    done = fedsa("run", "--dry-run", *SMOKE, f"task.dataset={name}")
    assert done.returncode == 0, name
    assert "classes 2: it, office" in said(done), name
    assert "rows 160 train" in said(done), name

done = fedsa("run", "--dry-run", *SMOKE, "task.dataset=columns.json")
assert done.returncode == 1
assert "orient='records', lines=True" in said(done), "the remedy is not named"
assert len(said(done)) < 600, "the error is as long as the file"
