"""Tiny random models of each kind with clients' random examples, for the tests beside this file."""

from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from fedsa_lora.learning.adapters import AdapterModel, LoraSettings, attach
from fedsa_lora.learning.job import Job
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import round_batches
from fedsa_lora.seeds import generator
from fedsa_lora.tasks.causal_lm import IGNORED, CausalLMTask
from fedsa_lora.tasks.image import ImageTask
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.pooling import mean_pooled
from fedsa_lora.tasks.task import Examples
from fedsa_lora.tasks.text import TextTask

CLASSES = ["a", "b", "c"]
WORDS, LONGEST = 50, 14
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DROPS = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
TEXT = SMALL | {
    "vocab_size": WORDS,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": WORDS,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "initializer_range": 0.2,
}
DISTIL = {
    "vocab_size": WORDS,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 24,
    "initializer_range": 0.2,
}
VIT = SMALL | {"image_size": 8, "patch_size": 4, "num_channels": 1, "initializer_range": 0.2}
CONFIGS = {
    "bert": TEXT | DROPS,
    "mean": TEXT | DROPS,
    "roberta": TEXT | DROPS | {"pad_token_id": 1},
    "distilbert": DISTIL | {"dropout": 0.1, "attention_dropout": 0.1, "pad_token_id": 0},
    "gpt2": GPT2 | {"pad_token_id": 0, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    "llama": TEXT | {"num_key_value_heads": 1, "attention_dropout": 0.1},
    "words": TEXT | {"num_key_value_heads": 1, "attention_dropout": 0.1},
    "vit": VIT | {"hidden_dropout_prob": 0.1},
}
TYPES = {"mean": "bert", "words": "llama"}
STILL = {
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "resid_pdrop",
    "embd_pdrop", "attn_pdrop",
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """A model with LoRA and a task that reads it, without data of its own."""

    kind: str
    model: AdapterModel
    task: object

    def examples(self, client: int, count: int = 20) -> Examples:
        """A client's random examples, of lengths that differ."""
        rng = np.random.default_rng(client)
        labels = rng.integers(0, len(CLASSES), count)
        lengths = rng.integers(3, LONGEST, count)
        if self.kind == "vit":
            kind = next(self.model.module.parameters()).dtype
            pixels = torch.from_numpy(rng.normal(size=(count, 1, 8, 8))).to(kind).numpy()
            return Examples({"pixel_values": [*pixels]}, labels, np.ones(count, np.int64))
        ids = [rng.integers(2, WORDS, length) for length in lengths]
        if self.kind == "words":
            answers = [np.where(np.arange(len(row)) < 2, IGNORED, row) for row in ids]
            return Examples({"input_ids": ids, "labels": answers}, np.full(count, -1), lengths)
        return Examples({"input_ids": ids, "attention_mask": [*map(np.ones_like, ids)]}, labels, lengths)

    @cached_property
    def layout(self):
        return self.model.layout

    def values(self, client: int) -> dict[str, np.ndarray]:
        """A client's own start, with B not zero."""
        rng = np.random.default_rng(100 + client)
        return {s.name: 0.2 * rng.normal(size=s.shape).astype(np.float32) for s in self.model.layout}

    def job(self, client: int, settings: TrainSettings, *, roles: str = "A B head", **changes) -> Job:
        examples = changes.pop("examples", None) or self.examples(client)
        fields = {
            "values": self.values(client),
            "trained": frozenset(s.name for s in self.model.layout if s.role in roles.split()),
            "examples": examples,
            "settings": settings,
            "batches": round_batches(examples.lengths, settings, generator(0, "batches", str(client))),
            "dropout": client,
        }
        return Job(**fields | changes)


def bench(kind: str, *, dropout: bool = False, double: bool = False, **lora) -> Bench:
    config = {k: v for k, v in CONFIGS[kind].items() if dropout or k not in STILL}
    if not dropout:
        config |= dict.fromkeys(STILL & CONFIGS[kind].keys(), 0.0)
    made = AutoConfig.for_model(TYPES.get(kind, kind), num_labels=len(CLASSES), **config)
    auto = {"vit": AutoModelForImageClassification, "words": AutoModelForCausalLM}
    torch.manual_seed(0)
    backbone = auto.get(kind, AutoModelForSequenceClassification).from_config(made).eval()
    if kind == "mean":
        backbone = mean_pooled(backbone)
    settings = LoraSettings(**{"r": 4, "alpha": 8, "dropout": 0.1 * dropout} | lora)
    module = attach(backbone, settings)
    return Bench(kind, AdapterModel(module.double() if double else module), _task(kind, made))


def _task(kind: str, config):
    fields = {"model": ModelSettings(pretrained=False, config={"model_type": config.model_type})}
    if kind == "vit":
        task = ImageTask(**fields)
        task.__dict__["data"] = SimpleNamespace(classes=tuple(CLASSES))
        return task
    text = {"dataset": "none"}
    task = (
        CausalLMTask(**fields, **text) if kind == "words" else TextTask(**fields, **text, class_names=CLASSES)
    )
    task.__dict__["tokenizer"] = SimpleNamespace(
        pad_token_id=config.pad_token_id, pad_token_type_id=0, padding_side="right"
    )
    return task
