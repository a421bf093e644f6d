"""A decoder without a padding token: what is exported serves more than one text at a time."""

from case import SMOKE, TRAINED, fedsa
from tiny import SMALL, bpe, check_answers, save, texts
from transformers import LlamaConfig, LlamaForCausalLM

tokenizer = bpe(texts(), ["<unk>", "<s>", "</s>"], unk_token="<unk>", bos_token="<s>", eos_token="</s>")
config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=128, **SMALL)
save(LlamaForCausalLM, config, tokenizer)
words = (
    *SMOKE,
    *TRAINED,
    "task.dataset=data.csv",
    "model=roberta_base",
    "model.path=model",
    "run.report=false",
)
assert fedsa("run", *words, "task.max_length=64").returncode == 0
for folder, options in {"out": [], "whole": ["--merge"]}.items():
    assert fedsa("export", "run", "--client", "0", "--to", folder, *options).returncode == 0
    check_answers("run", folder, "0")
