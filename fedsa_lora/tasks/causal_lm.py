"""Causal language models on texts, or on conversations of which the answers are learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.measure import ENTROPY, LARGEST, Measure
from fedsa_lora.suggest import listing, nearest
from fedsa_lora.tasks.conversation import CHAT, Message, Part, chat_parts, read_messages, template_of
from fedsa_lora.tasks.generation import AnswerMeasure, Bleu, ExactMatch, RougeL, written
from fedsa_lora.tasks.rows import Columns, Inputs, Kept
from fedsa_lora.tasks.task import Batch, Examples
from fedsa_lora.tasks.text import TextData
from fedsa_lora.tasks.token_losses import IGNORED, answer_losses, last_answers

if TYPE_CHECKING:
    import datasets
    import torch

OF_TOKENS = (
    Measure("perplexity", (1.0, LARGEST), higher_is_better=False),
    Measure("loss", ENTROPY, higher_is_better=False),
)


@dataclass(frozen=True, kw_only=True)
class CausalLMTask(TextData):
    """Texts that a language model learns to continue; there are no classes.

    A row is a ``prompt`` and an ``answer``, or a list of chat ``messages``, or a ``text``: names of columns,
    of which ``text`` and ``messages`` go before. Of a text every token has a loss, else the answers alone
    and their ends, in a chat those of all turns.

    ``template`` stands around prompts: ``chat`` is the tokenizer's own, ``alpaca`` and ``vicuna`` are ours,
    any other is a text with {prompt} in the place of the prompt. Of a conversation longer than
    ``max_length`` tokens the beginning is cut off, of a text the end.

    ``packed`` trains a batch as one row without padding, with attention and positions within each example.

    ``measured`` names the measures, the primary one first. ``exact_match``, ``rouge_l`` and ``bleu`` have
    the model write the last answer of each conversation itself, at most ``max_new_tokens``, which takes a
    pass for each token; ``perplexity`` and ``loss`` take one pass. With ``final_number`` two answers match
    that end in the same number. Raises ConfigError for settings that cannot be.
    """

    text: str | None = None
    messages: str | None = None
    prompt: str = "prompt"
    answer: str = "answer"
    template: str = CHAT
    packed: bool = False
    measured: list[str] = field(default_factory=lambda: ["perplexity", "loss"])
    final_number: bool = False
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text and self.messages:
            raise ConfigError("text and messages both name what is learned: give one of them")
        if self.template != CHAT:
            template_of(self.template)
        if self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}: expected 2 tokens or more, one to answer to")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}: expected at least 1")
        if self.partition.label_meaning != "common":
            raise ConfigError("there are no classes to rename: expected federation.label_meaning=common")
        self._check_measured()

    def _check_measured(self) -> None:
        known = [*(measure.name for measure in OF_TOKENS), *self._of_answers]
        for name in self.measured:
            if name not in known:
                raise ConfigError(
                    f"measured has {name!r}{nearest(name, known)}; expected some of {listing(known)}"
                )
        if len(set(self.measured)) < len(self.measured):
            raise ConfigError(f"measured is {self.measured}: expected each measure once")
        if self.text and self._answered:
            raise ConfigError(
                f"measured has {self._answered[0].measure.name!r}, which is of answers, and a text has none: "
                "expected perplexity and loss, or task.prompt and task.answer instead of task.text"
            )

    @property
    def auto_class(self) -> Any:
        """The class of transformers that builds the model."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Those that are ``measured``, the primary one first."""
        known = {measure.name: measure for measure in OF_TOKENS}
        known |= {name: found.measure for name, found in self._of_answers.items()}
        return tuple(known[name] for name in self.measured)

    @property
    def _of_answers(self) -> dict[str, AnswerMeasure]:
        """Every measure of written answers by its name."""
        found: list[AnswerMeasure] = [ExactMatch(self.final_number), RougeL(), Bleu()]
        return {each.measure.name: each for each in found}

    @property
    def _answered(self) -> list[AnswerMeasure]:
        """The measures that the model has to write answers for."""
        return [found for name, found in self._of_answers.items() if name in self.measured]

    def labels(self) -> tuple[str, ...]:
        """None: answers are words."""
        return ()

    @property
    def columns(self) -> Columns:
        named = {"prompt": self.prompt, "answer": self.answer}
        if self.messages:
            named = {"messages": self.messages}
        if self.text:
            named = {"text": self.text}
        return Columns(named, None, self.group, self.where)

    def inputs(self, kept: Kept, columns: Mapping[str, str]) -> Inputs:
        """The texts of each column, or the conversations."""
        if self.messages:
            return read_messages(kept, self.messages)
        return super().inputs(kept, columns)

    def build_model(self, *, seed: int, empty: bool = False) -> torch.nn.Module:
        """The language model; on the meta device and without weights when ``empty``. Raises ModelError for
        one that looks from one example into the next where they are ``packed``."""
        from fedsa_lora.tasks.packing import check_packing

        model = super().build_model(seed=seed, empty=empty)
        if self.packed:
            check_packing(model, empty)
        return model

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a text, first the one that answers are given: those of the model's config, and
        the tokenizer's. Raises ConfigError where there is none."""
        own, stated = self.tokenizer.eos_token_id, self._stated_ends()
        known = [own, *stated] if own in stated else [*stated, own]
        found = tuple(dict.fromkeys(token for token in known if token is not None))
        if not found:
            raise ConfigError(
                f"the tokenizer of {self.model.tokenizer or self.model.path} has no end-of-text token, so "
                f"it is not that of a causal language model: correct model.path"
            )
        return found

    def _stated_ends(self) -> list[int]:
        """Those that the config of the model, or ``model.config``, states; not the default of its type."""
        from fedsa_lora.tasks.model_config import load_config

        if not self.model.path and "eos_token_id" not in self.model.config:
            return []
        stated = load_config(self.model, ())[0].eos_token_id
        return list(stated) if isinstance(stated, list | tuple) else [stated]

    def inspect(self) -> tuple[str, ...]:
        """Remarks on what ends an answer and what stands around a prompt. Raises ConfigError where the first
        row cannot be encoded, and where a library is lacking that a measure needs."""
        for measure in self._answered:
            measure.numbers("", "")
        if not self.partition.own:
            self.encode(self.data.train.inputs.select(np.arange(1)), np.full(1, -1))
        last = self.tokenizer.decode([self.ends[0]])
        remarks = [f"{'a text' if self.text else 'an answer'} ends with {last!r} (token {self.ends[0]})"]
        if not self.text:
            words = "the tokenizer's chat template" if self.template == CHAT else repr(self.template)
            remarks.append(f"around a prompt stands {words}")
        return tuple(remarks)

    def encode(self, inputs: datasets.Dataset, labels: NDArray[np.int64]) -> Examples:
        """``input_ids``, and ``labels``, the same but for the tokens that have no loss: each int64 of the
        example's own length. The first token, which nothing comes before, has none."""
        ids: list[NDArray[np.int64]] = []
        targets: list[NDArray[np.int64]] = []
        for row in inputs:
            tokens, learned = self._text(row["text"]) if self.text else self._conversation(row)
            ids.append(np.array(tokens, dtype=np.int64))
            targets.append(np.where([False, *learned[1:]], ids[-1], IGNORED))
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        features = {"input_ids": ids, "labels": targets}
        return Examples(features, np.full(len(ids), -1), lengths, packed=self.packed)

    def _text(self, text: str) -> tuple[list[int], list[bool]]:
        """The tokens of a text with its end, and which are learned: all of them."""
        tokens = [*self.tokenizer(text)["input_ids"], self.ends[0]][: self.max_length]
        return tokens, [True] * len(tokens)

    def _conversation(self, row: Mapping[str, Any]) -> tuple[list[int], list[bool]]:
        """The tokens of a conversation up to its last answer, and which are learned: those of the answers."""
        tokens: list[int] = []
        learned: list[bool] = []
        for part in self._parts(row):
            # the template of a chat has the special tokens in it
            special = not tokens and self.template != CHAT
            found = self.tokenizer(part.text, add_special_tokens=special)["input_ids"]
            if part.learned and self.template != CHAT:
                found = [*found, self.ends[0]]
            if part.learned:
                found = found[: self.max_length - 1]
            tokens += found
            learned += [part.learned] * len(found)
        return tokens[-self.max_length :], learned[-self.max_length :]

    def _parts(self, row: Mapping[str, Any]) -> Iterator[Part]:
        messages: Sequence[Message]
        if self.messages:
            messages = row["messages"]
        else:
            asked = {"role": "user", "content": row["prompt"]}
            messages = [asked, {"role": "assistant", "content": row["answer"]}]
        if self.template == CHAT:
            return chat_parts(self.tokenizer, messages, [self.tokenizer.decode([end]) for end in self.ends])
        return template_of(self.template).parts(messages)

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

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The model's own loss: mean cross-entropy over the learned tokens of a batch, a scalar."""
        from fedsa_lora.tasks.packing import one_row

        if not self.packed:
            return super().loss(model, batch)
        loss: torch.Tensor = model(**one_row(batch), use_cache=False).loss
        return loss

    def terms(self, examples: Examples, indices: NDArray[np.int64]) -> int:
        """The learned tokens, which the loss is the mean of; the first of a row follows none."""
        return sum(int((examples.features["labels"][i][1:] != IGNORED).sum()) for i in indices)

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """By example (batch, ...): the summed loss of its learned tokens in nats, the number of these, and
        the numbers of each measure of written answers."""
        import torch

        found = torch.stack(answer_losses(model, batch), dim=1)
        if not self._answered:
            return found
        pairs = [*zip(self.write(model, batch), self.wanted(batch), strict=True)]
        numbers = [[n for each in self._answered for n in each.numbers(*pair)] for pair in pairs]
        return torch.cat([found, torch.tensor(numbers, dtype=found.dtype, device=found.device)], dim=1)

    def wanted(self, batch: Batch) -> list[str]:
        """The last answer of each conversation of a batch."""
        return [self._words(answer) for _, answer in last_answers(batch)]

    def write(self, model: Any, batch: Batch) -> list[str]:
        """Generates the last answer of each conversation of a batch, by greedy decoding."""
        prompts = [prompt for prompt, _ in last_answers(batch)]
        pad = self.tokenizer.pad_token_id
        found = written(model, prompts, ends=self.ends, pad=pad, most=self.max_new_tokens)
        return [self._words(row) for row in found]

    def evaluate(self, predictions: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """``loss`` in nats and ``perplexity`` by token of all examples, and the measures of written answers
        that are ``measured``."""
        numbers = predictions.astype(np.float64)
        total, tokens = numbers[:, :2].sum(axis=0)
        loss = float(total / tokens)
        found, begin = {"loss": loss, "perplexity": float(np.exp(loss))}, 2
        for each in self._answered:
            found[each.measure.name] = each.value(numbers[:, begin : begin + each.width])
            begin += each.width
        return found

    def _words(self, ids: torch.Tensor) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text
