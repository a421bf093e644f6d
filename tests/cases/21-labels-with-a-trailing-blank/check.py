"""Blanks around a label do not make another class, a class listed twice is refused, and classes are shown."""

from case import SMOKE, fedsa, said

DATA = (*SMOKE, "task.dataset=data.csv")

done = fedsa("run", "--dry-run", *DATA)
assert done.returncode == 0
assert "classes 4: billing, facility, it, office" in said(done)
assert "'it ' is read as 'it'" in said(done), "that blanks do not count is not remarked"

for names in ("[billing,facility,it,office,it]", "[billing,facility,it,office,'it ']"):
    done = fedsa("run", "--dry-run", *DATA, f"task.class_names={names}")
    assert done.returncode == 1, f"class_names={names} is taken"
    assert "ConfigError" in said(done)
    assert "'it' more than once" in said(done)
