"""A classifier of 3 classes is a start for 4: its head is drawn anew, and the plan says so."""

from case import SMOKE, TRAINED, fedsa, said
from tiny import SMALL, save, texts, wordpiece
from transformers import BertConfig, BertForSequenceClassification

texts()
save(BertForSequenceClassification, BertConfig(vocab_size=30522, num_labels=3, **SMALL), wordpiece())
words = (*SMOKE, "task.dataset=data.csv", "model=roberta_base", "model.path=model")
plan = fedsa("run", "--dry-run", *words)
assert plan.returncode == 0
assert "that of the checkpoint has 3 outputs, the data have 4 classes" in said(plan)
assert fedsa("run", *words, *TRAINED, "run.report=false").returncode == 0
