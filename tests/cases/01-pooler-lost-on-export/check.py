"""A BERT saved from masked-language training has no pooler: it is trained and exported with the head."""

from case import SMOKE, TRAINED, fedsa, said
from tiny import SMALL, check_answers, save, texts, wordpiece
from transformers import BertConfig, BertForMaskedLM

texts()
save(BertForMaskedLM, BertConfig(vocab_size=30522, **SMALL), wordpiece())
words = (
    *SMOKE,
    *TRAINED,
    "task.dataset=data.csv",
    "model=roberta_base",
    "model.path=model",
    "run.report=false",
)
done = fedsa("run", *words)
assert done.returncode == 0
assert "initialised at random from the seed: bert.pooler.dense, classifier" in said(done)
assert fedsa("export", "run", "--client", "0", "--to", "out").returncode == 0
check_answers("run", "out", "0")
assert fedsa("export", "run", "--client", "0", "--to", "whole", "--merge").returncode == 0
check_answers("run", "whole", "0")
