"""Files as spreadsheets export them are read, or refused with the cause and the remedy."""

from case import SMOKE, fedsa, said

for name in ("semicolon.csv", "utf16.csv", "UPPER.CSV"):
    done = fedsa("run", "--dry-run", *SMOKE, f"task.dataset={name}")
    assert done.returncode == 0, name
    assert "classes 4: billing, facility, it, office" in said(done), name
    assert "rows 160 train" in said(done), name

done = fedsa("run", "--dry-run", *SMOKE, "task.dataset=latin1.csv")
assert done.returncode == 1
for fact in ("latin1.csv, line 2", "byte 0xf6", "not UTF-8", "save the file as UTF-8"):
    assert fact in said(done), f"the fault does not name {fact}"
assert len(said(done)) < 1000
