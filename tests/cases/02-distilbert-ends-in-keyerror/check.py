"""A DistilBERT run ends well, and its export answers as the run did: pre_classifier belongs to the head."""

from pathlib import Path

from case import SMOKE, TRAINED, fedsa
from tiny import check_answers, save, texts, wordpiece
from transformers import DistilBertConfig, DistilBertForMaskedLM

texts()
sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "initializer_range": 0.15}
save(DistilBertForMaskedLM, DistilBertConfig(vocab_size=30522, **sizes), wordpiece())
words = (*SMOKE, *TRAINED, "task.dataset=data.csv", "model=roberta_base", "model.path=model")
assert fedsa("run", *words).returncode == 0
assert Path("run/report.html").is_file()
assert fedsa("export", "run", "--client", "0", "--to", "out").returncode == 0
check_answers("run", "out", "0")
check_answers("run", "run/adapters/0", "0")
