"""The config's padding token is made that of the tokenizer: a class does not depend on the batch."""

import json
from pathlib import Path

from case import SMOKE, TRAINED, fedsa
from tiny import bpe, check_answers, save, texts
from transformers import GPT2Config, GPT2LMHeadModel

end = "<|endoftext|>"
tokenizer = bpe(texts(), [end], eos_token=end, bos_token=end, unk_token=end, model_max_length=128)
sizes = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.15}
tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 5}
save(GPT2LMHeadModel, GPT2Config(vocab_size=len(tokenizer), **sizes, **tokens), tokenizer)
words = (
    *SMOKE,
    *TRAINED,
    "task.dataset=data.csv",
    "model=roberta_base",
    "model.path=model",
    "run.report=false",
)
assert fedsa("run", *words, "task.max_length=64").returncode == 0
for folder, options in {"whole": ["--merge"], "out": []}.items():
    assert fedsa("export", "run", "--client", "0", "--to", folder, *options).returncode == 0
    check_answers("run", folder, "0")
assert json.loads(Path("whole/config.json").read_text())["pad_token_id"] == 0
