"""True and False are what the file says: as a value of where, and as classes."""

from case import SMOKE, fedsa, said

from fedsa_lora.config import load

DATA = (*SMOKE, "task.dataset=data.csv")

done = fedsa("run", "--dry-run", *DATA, "+task.where.active=true")
assert done.returncode == 0, "where.active=true is refused"
assert "rows 160 train (left out: 80 by task.where)" in said(done)
for value, rows in (("True", 80), ("[true,false]", 160)):
    assert len(load([*DATA, f"+task.where.active={value}"]).task.data.train) == rows

done = fedsa("run", "--dry-run", *DATA, "task.class_names=['False','True']")
assert done.returncode == 0, "the names of the file are refused"
assert "classes 2: False, True" in said(done)
assert load([*DATA]).task.labels() == ("False", "True"), "classes are not called as in the file"
