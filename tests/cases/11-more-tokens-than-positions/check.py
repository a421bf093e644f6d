"""Texts longer than the model's positions are an error before anything runs."""

from pathlib import Path

from case import SMOKE, TRAINED, fedsa, said
from tiny import SMALL, save, texts, wordpiece
from transformers import BertConfig, BertForMaskedLM

texts(repeated=40)
save(BertForMaskedLM, BertConfig(vocab_size=30522, max_position_embeddings=64, **SMALL), wordpiece())
words = (*SMOKE, "task.dataset=data.csv", "model=roberta_base", "model.path=model", "task.max_length=128")
for command in (["--dry-run", *words], [*words, *TRAINED]):
    done = fedsa("run", *command)
    assert done.returncode == 1
    assert "ConfigError: task.max_length is 128, the model has 64 positions" in said(done)
    assert "lower it" in said(done)
assert not Path("run").exists()
