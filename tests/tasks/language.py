"""A tiny causal language model, its tokenizer of bytes, sums to learn, and a task of its own on them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from fedsa_lora.exchange.measure import Measure
from fedsa_lora.tasks.causal_lm import IGNORED, CausalLMTask
from fedsa_lora.tasks.task import Batch

LLAMA = {
    "model_type": "llama",
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, kw_only=True)
class Surprise(CausalLMTask):
    """Answers that are judged by the perplexity of their tokens and by nothing else."""

    measures: ClassVar[tuple[Measure, ...]] = (Measure("perplexity", (1.0, 1e6), higher_is_better=False),)

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """By example (batch, 2): the summed loss of its answer in nats, and the tokens of its answer."""
        labels = batch["labels"][:, 1:]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        losses = cross_entropy(logits.float().mT, labels, ignore_index=IGNORED, reduction="none")
        return torch.stack([losses.sum(dim=1), (labels != IGNORED).sum(dim=1)], dim=1)

    def evaluate(self, predictions: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """``perplexity`` by token of all answers."""
        total, tokens = predictions.astype(np.float64).sum(axis=0)
        return {"perplexity": float(np.exp(total / tokens))}


def write_tokenizer(folder: Path) -> Path:
    """One token for each byte, and a beginning, an end and padding."""
    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {c: i for i, c in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_ = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_.decoder = decoders.ByteLevel()
    bytes_.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=bytes_, **names).save_pretrained(folder)
    return folder


def write_sums(folder: Path) -> Path:
    """Sums in words, of lengths that differ."""
    sums = [(i, i * i) for i in range(24)]
    for split, chosen in {"train": sums, "test": sums[::3]}.items():
        lines = [
            {"prompt": f"{a} and {b}", "answer": f"{a}+{b}={a + b}\n#### {a + b}", "word": "ab"[a % 2]}
            for a, b in chosen
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def words_of_a_run(rows: Path, tokenizer: Path) -> list[str]:
    """Two clients that learn sums, each with the tiny model."""
    config = ",".join(f"{key}: {value}" for key, value in LLAMA.items())
    return [
        "experiment=smoke",
        "task=gsm8k",
        "model=llama3_8b",
        f"task.dataset={rows}",
        "task.subset=null",
        "task.prompt=prompt",
        "task.max_length=64",
        "task.max_new_tokens=4",
        "federation.clients=2",
        "federation.train_examples=[12,12]",
        "federation.validation_examples=0",
        "train.steps=6",
        f"model.tokenizer={tokenizer}",
        "model.path=",
        "model.pretrained=false",
        f"model.config={{{config}}}",
    ]
