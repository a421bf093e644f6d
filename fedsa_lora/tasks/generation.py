"""Answers that a language model writes by itself, and how near they are to those that are wanted."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.measure import SHARE, Measure

if TYPE_CHECKING:
    import torch

MARKER = "####"  # what GSM8K writes before the final number
ORDERS = 4  # of BLEU's n-grams
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def written(
    model: Any, prompts: Sequence[torch.Tensor], *, ends: Sequence[int], pad: int, most: int
) -> list[torch.Tensor]:
    """Generates what follows each of the prompts, token ids (length,), by greedy decoding: up to one of the
    tokens ``ends``, at most ``most`` tokens, filled up with ``pad`` behind it."""
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import GenerationConfig

    # on the left, so that every prompt ends where its answer begins
    ids = pad_sequence(list(prompts), True, pad, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in prompts], True, 0, padding_side="left")
    greedy = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=list(ends), pad_token_id=pad)
    found = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
    return [row[ids.shape[1] :] for row in found]


class AnswerMeasure(Protocol):
    """A measure of written answers: ``width`` numbers for each, from which the value over n of them is
    computed."""

    measure: ClassVar[Measure]
    width: ClassVar[int]

    def numbers(self, text: str, wanted: str) -> Sequence[float]:
        """Those of one answer: the ``text`` that was written, and the one that was wanted. Raises ConfigError
        where a library that they need is not installed."""
        ...

    def value(self, numbers: NDArray[np.float64]) -> float:
        """The value from the numbers (n, width) of n answers."""
        ...


@dataclass(frozen=True)
class ExactMatch:
    """The share of answers in the same words; with ``final_number`` of those that end in the same number."""

    final_number: bool = False

    measure: ClassVar[Measure] = Measure("exact_match", SHARE, format="percent")
    width: ClassVar[int] = 1

    def numbers(self, text: str, wanted: str) -> Sequence[float]:
        if self.final_number:
            return [same_answer(text, wanted)]
        return [text.strip() == wanted.strip()]

    def value(self, numbers: NDArray[np.float64]) -> float:
        return float(numbers.mean())


@dataclass(frozen=True)
class RougeL:
    """ROUGE-L of the package rouge-score, without stemming: the F-measure of the longest common subsequence
    of words (Lin, 2004), mean over answers."""

    measure: ClassVar[Measure] = Measure("rouge_l", SHARE, format="percent")
    width: ClassVar[int] = 1

    def numbers(self, text: str, wanted: str) -> Sequence[float]:
        return [_scorer().score(wanted, text)["rougeL"].fmeasure]

    def value(self, numbers: NDArray[np.float64]) -> float:
        return float(numbers.mean())


@dataclass(frozen=True)
class Bleu:
    """BLEU of a client's answers as one corpus (Papineni et al., 2002), by sacrebleu with its default
    tokenizer and smoothing, from 0 to 1: its score is 100 times that.

    The numbers of an answer are the n-grams of each order that were found and that there are, and the words
    of both texts: those of a corpus are their sums.
    """

    measure: ClassVar[Measure] = Measure("bleu", SHARE, format="percent")
    width: ClassVar[int] = 2 * ORDERS + 2

    def numbers(self, text: str, wanted: str) -> Sequence[float]:
        counter = _bleu()(effective_order=True)  # without it, it warns of the score of one answer
        found = counter.sentence_score(text, [wanted])
        return [*found.counts, *found.totals, found.sys_len, found.ref_len]

    def value(self, numbers: NDArray[np.float64]) -> float:
        *grams, written_words, wanted_words = numbers.sum(axis=0).astype(int).tolist()
        found = _bleu().compute_bleu(
            grams[:ORDERS], grams[ORDERS:], written_words, wanted_words, smooth_method="exp"
        )
        return min(1.0, float(found.score) / 100)  # a perfect score is 100 but for rounding


@cache
def _scorer() -> Any:
    return _library("rouge_score.rouge_scorer", "rouge_l").RougeScorer(["rougeL"])


@cache
def _bleu() -> Any:
    return _library("sacrebleu.metrics", "bleu").BLEU


def _library(module: str, measure: str) -> Any:
    """A library that only some runs need. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise ConfigError(
            f"the measure {measure} needs the package {package} ({error}): pip install "
            '"fedsa-lora[generation]", or leave it out of task.measured',
            sent="a package that a measure of the run needs is not installed here",
            key="task.measured",
        ) from None


def same_answer(text: str, wanted: str) -> bool:
    """True where two answers end in the same number; in the same words where the wanted one has no number."""
    number = final_number(wanted)
    return text.strip() == wanted.strip() if number is None else final_number(text) == number


def final_number(text: str) -> float | None:
    """The first number after ``####``; the last one of a text without that mark; None where there is none."""
    _, marked, tail = text.partition(MARKER)
    numbers = _NUMBER.findall(tail if marked else text)
    return float(numbers[0 if marked else -1].replace(",", "")) if numbers else None
