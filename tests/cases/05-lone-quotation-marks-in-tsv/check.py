"""A TSV file as of GLUE, without quoting: lone quotation marks are text, and 100 lines are 100 rows."""

from case import SMOKE, fedsa, said

from fedsa_lora.config import load

done = fedsa("run", "--dry-run", *SMOKE, "task.dataset=data.tsv")
assert done.returncode == 0
assert "rows 100 train" in said(done), "the plan does not show 100 rows"
assert "quotation marks are read as text" in said(done), "how marks were read is not remarked"
texts = load([*SMOKE, "task.dataset=data.tsv"]).task.data.train.inputs["text"]
assert len(texts) == 100, f"{len(texts)} rows"
assert sum(text.startswith('"please, he said') for text in texts) > 1, "the marks are gone"
assert max(map(len, texts)) < 60, "several lines became one text"
