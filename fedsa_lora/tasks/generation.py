"""Answers in words: a causal language model learns the answer to a prompt and is judged by what it writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.measure import ENTROPY, LARGEST, SHARE, Measure
from fedsa_lora.tasks.rows import Columns
from fedsa_lora.tasks.task import Batch, Examples
from fedsa_lora.tasks.text import TextData

if TYPE_CHECKING:
    import datasets
    import torch

IGNORED = -100  # a token without a loss, as transformers has it
MARKER = "####"  # what GSM8K writes before the final number
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class GenerationTask(TextData):
    """Prompts with their answers; there are no classes.

    ``prompt`` and ``answer`` are column names. ``template`` is what the model is given, with {prompt} in
    the place of the prompt. Of an example longer than ``max_length`` tokens the beginning of the prompt is
    cut off. At most ``max_new_tokens`` are written. Raises ConfigError for settings that cannot be.
    """

    prompt: str = "prompt"
    answer: str = "answer"
    template: str = "{prompt}"
    max_new_tokens: int = 256

    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("exact_match", SHARE, format="percent"),
        Measure("loss", ENTROPY, higher_is_better=False),
        Measure("perplexity", (1.0, LARGEST), higher_is_better=False),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template.count("{prompt}") != 1:
            raise ConfigError(f"template is {self.template!r}: expected {{prompt}} in it, once")
        if self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}: expected 2 tokens or more, one to answer to")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}: expected at least 1")
        if self.partition.label_meaning != "common":
            raise ConfigError("there are no classes to rename: expected federation.label_meaning=common")

    @property
    def auto_class(self) -> Any:
        """The class of transformers that builds the model."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def labels(self) -> tuple[str, ...]:
        """None: answers are words."""
        return ()

    @property
    def columns(self) -> Columns:
        return Columns({"prompt": self.prompt, "answer": self.answer}, None, self.group, self.where)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer. Raises ConfigError when it has no token that ends an answer."""
        tokenizer = super().tokenizer
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"the tokenizer of {self.model.tokenizer or self.model.path} has no token that ends a text, "
                "so it is not that of a causal language model: correct model.path"
            )
        return tokenizer

    def encode(self, inputs: datasets.Dataset, labels: NDArray[np.int64]) -> Examples:
        """``input_ids``, prompt and answer with its end, and ``labels``, the same but for the prompt, which
        has no loss: each int64 of the example's own length."""
        ids: list[NDArray[np.int64]] = []
        targets: list[NDArray[np.int64]] = []
        for row in inputs:
            prompt = self.tokenizer(self.template.replace("{prompt}", row["prompt"]))["input_ids"]
            answer = self.tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
            answer = [*answer, self.tokenizer.eos_token_id][: self.max_length - 1]
            prompt = prompt[-(self.max_length - len(answer)) :]
            ids.append(np.array(prompt + answer, dtype=np.int64))
            targets.append(np.array([IGNORED] * len(prompt) + answer, dtype=np.int64))
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        return Examples({"input_ids": ids, "labels": targets}, np.full(len(ids), -1), lengths)

    def collate(self, examples: Examples, indices: NDArray[np.int64]) -> Batch:
        """``input_ids``, ``attention_mask`` and ``labels``, each (batch, longest of the batch)."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = {
            name: [torch.from_numpy(rows[i]) for i in indices] for name, rows in examples.features.items()
        }
        return {
            "input_ids": pad_sequence(rows["input_ids"], True, self.tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows["input_ids"]], True, 0),
            "labels": pad_sequence(rows["labels"], True, IGNORED),
        }

    def terms(self, examples: Examples, indices: NDArray[np.int64]) -> int:
        """The tokens of answers, which the loss is the mean of; the first of a row follows none."""
        return sum(int((examples.features["labels"][i][1:] != IGNORED).sum()) for i in indices)

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """By example (batch, 3): the summed loss of its answer in nats, the tokens of its answer, and 1 where
        what the model writes by itself, the likeliest token each time, ends in the right number."""
        import torch
        from torch.nn.functional import cross_entropy

        labels = batch["labels"][:, 1:]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        losses = cross_entropy(logits.float().mT, labels, ignore_index=IGNORED, reduction="none")
        wanted = [self._text(row[row != IGNORED]) for row in labels]
        written = self.write(model, batch)
        right = [same_answer(*pair) for pair in zip(written, wanted, strict=True)]
        tokens = (labels != IGNORED).sum(dim=1)
        return torch.stack([losses.sum(dim=1), tokens, torch.tensor(right, device=tokens.device)], dim=1)

    def write(self, model: Any, batch: Batch) -> list[str]:
        """Generates the answers to the prompts of a batch, by greedy decoding."""
        import torch
        from torch.nn.utils.rnn import pad_sequence
        from transformers import GenerationConfig

        given = (batch["labels"] == IGNORED) & batch["attention_mask"].bool()
        prompts = [row[kept] for row, kept in zip(batch["input_ids"], given, strict=True)]
        # on the left, so that every prompt ends where its answer begins
        ids = pad_sequence(prompts, True, self.tokenizer.pad_token_id, padding_side="left")
        mask = pad_sequence([torch.ones_like(row) for row in prompts], True, 0, padding_side="left")
        greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        written = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
        return [self._text(row) for row in written[:, ids.shape[1] :]]

    def evaluate(self, predictions: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """``exact_match``, the share of answers that end in the right number; ``loss`` in nats and
        ``perplexity`` by token of all answers."""
        total, tokens, right = predictions.astype(np.float64).sum(axis=0)
        loss = float(total / tokens)
        perplexity = float(np.exp(loss))
        return {"exact_match": float(right / len(predictions)), "loss": loss, "perplexity": perplexity}

    def _text(self, ids: torch.Tensor) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def same_answer(written: str, wanted: str) -> bool:
    """True where two answers end in the same number; in the same words where the wanted one has no number."""
    number = final_number(wanted)
    return written.strip() == wanted.strip() if number is None else final_number(written) == number


def final_number(text: str) -> float | None:
    """The first number after ``####``; the last one of a text without that mark; None where there is none."""
    _, marked, tail = text.partition(MARKER)
    numbers = _NUMBER.findall(tail if marked else text)
    return float(numbers[0 if marked else -1].replace(",", "")) if numbers else None
