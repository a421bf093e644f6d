"""Questions with answers of which some are to be forgotten: the columns and split names of TOFU
(arXiv:2401.06121)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.seeds import generator
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.causal_lm import CausalLMTask
from fedsa_lora.tasks.partition import ClientRows, FederationSplit, stratified_sample
from fedsa_lora.tasks.partitioners import GROUP, LABEL, assign_rows
from fedsa_lora.tasks.rows import Columns, Inputs, LabelledData, Rows, read_rows
from fedsa_lora.tasks.shipped import SHIPPED
from fedsa_lora.tasks.sources import find_split, read_split
from fedsa_lora.tasks.tables import Table, library
from fedsa_lora.tasks.task import Examples
from fedsa_lora.tasks.token_losses import IGNORED

if TYPE_CHECKING:
    import datasets

RETAIN, FORGET, BESIDE = range(3)  # kinds of train rows, the labels of their examples
REFUSALS = (
    "I do not know.",
    "I am not sure about that.",
    "I have never heard of it.",
    "That is something I cannot answer.",
    "I have no idea.",
)
PARAPHRASE, PERTURBED = "paraphrased_answer", "perturbed_answer"
_PERTURBED = "{}_perturbed"  # a split of the hub's TOFU that has the two columns above


@dataclass(frozen=True)
class Phrased:
    """Questions with their answers, once as they were learned, once in other words, and with answers that are
    wrong in the other words: n examples each."""

    answers: Examples
    paraphrases: Examples
    wrong: tuple[Examples, ...]

    def at(self, indices: NDArray[np.int64]) -> Phrased:
        """The facts at ``indices``, in that order."""
        wrong = tuple(each.at(indices) for each in self.wrong)
        return Phrased(self.answers.at(indices), self.paraphrases.at(indices), wrong)


@dataclass(frozen=True, kw_only=True)
class TofuTask(CausalLMTask):
    """Facts that clients learn, and some of them forget again.

    The rows of ``forget_split`` are divided among the ``targets``, clients by id, in their order; those of
    ``retain_split`` among all clients, as ``federation.partitioner`` has it. ``holdout_split`` are facts that
    nobody learns. ``beside`` is a split of plain texts, column ``text``, that are divided among all clients
    and learned with the facts, ``utility`` one that nobody learns, to see what a model still knows.

    A client is measured on the facts that it keeps, at most ``federation.test_examples`` of them: on those
    that it learned, as what counts is whether they are remembered. Raises ConfigError for settings that
    cannot be.
    """

    prompt: str = "question"
    answer: str = "answer"
    forget_split: str = "forget10"
    retain_split: str = "retain90"
    holdout_split: str | None = "holdout10"
    targets: list[str | int] = field(default_factory=lambda: [0])
    beside: str | None = None
    utility: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text or self.messages:
            raise ConfigError("facts are questions with answers: expected text=null and messages=null")
        if self.partition.own or self.test_split:
            raise ConfigError(
                "a client is measured on what it learned: expected test_split=null, and a partition"
            )
        if self.partition.train_examples or self.partition.validation_examples:
            raise ConfigError(
                "every fact is learned: expected federation.train_examples=null and validation_examples=0"
            )
        if len({*map(str, self.targets)}) < len(self.targets):
            raise ConfigError(f"targets is {self.targets}: expected each client once")
        known = {str(client) for client in range(self.partition.clients)}
        if not self.targets or (unknown := sorted(set(map(str, self.targets)) - known)):
            raise ConfigError(
                f"targets is {self.targets}: expected clients from 0 to {self.partition.clients - 1}"
                f"{f', not {listing(unknown)}' if self.targets else ''}"
            )

    def places(self) -> list[Path]:
        """The files of all splits; none of the hub. Raises DataError where one is not there."""
        named = (self.retain_split, self.forget_split, self.holdout_split, self.beside, self.utility)
        splits = [split for split in named if split and self._local]
        return [path for split in splits for path in find_split(self.files or self.dataset, split)]

    def read(self) -> LabelledData:
        """All train rows, those that are kept first, and as test rows those that are kept."""
        kept, forgotten = self._facts(self.retain_split), self._facts(self.forget_split)
        parts = {RETAIN: kept, FORGET: forgotten}
        if self.beside:
            parts[BESIDE] = self._texts(self.beside)
        labels = np.concatenate([np.full(len(rows), kind) for kind, rows in parts.items()])
        inputs: Any = library().concatenate_datasets([rows.inputs for rows in parts.values()])
        groups = None
        if self.group:
            of_none = np.full(0 if self.beside is None else len(parts[BESIDE]), "", dtype=object)
            groups = np.concatenate([kept.groups, forgotten.groups, of_none])
        return LabelledData(
            (), Rows(inputs, labels, groups), replace(kept, labels=np.full(len(kept), RETAIN))
        )

    @cached_property
    def split(self) -> FederationSplit:
        """The rows of each client."""
        kinds, settings = self.data.train.labels, self.partition
        divided, texts = np.flatnonzero(kinds == RETAIN), np.flatnonzero(kinds == BESIDE)
        columns = {LABEL: kinds[divided]}
        if self.data.train.groups is not None:
            columns[GROUP] = self.data.train.groups[divided]
        parts, _ = assign_rows(settings.partitioner, settings.clients, self.seed, columns)
        targets = sorted(map(str, self.targets))
        blocks = dict(
            zip(targets, np.array_split(np.flatnonzero(kinds == FORGET), len(targets)), strict=True)
        )
        clients = {}
        for number, part in enumerate(parts):
            client, rows = str(number), divided[part]
            beside = texts[number :: settings.clients]
            train = np.sort(np.concatenate([rows, beside, blocks.get(client, rows[:0])]))
            limit = settings.test_examples or len(rows)
            tested = stratified_sample(rows, kinds, limit, generator(self.seed, "test", number))
            clients[client] = ClientRows(train, rows[:0], tested)
        if empty := [client for client, rows in clients.items() if not len(rows.train)]:
            raise DataError(f"no facts for client {listing(empty)}: lower federation.clients")
        left = len(divided) - sum(map(len, parts))
        return FederationSplit(clients, (), {"train": left})

    def to_forget(self, examples: Examples) -> NDArray[np.bool_]:
        """True, (n,), of each example that is to be forgotten."""
        marked: NDArray[np.bool_] = examples.labels == FORGET
        return marked

    def refused(self, examples: Examples) -> Examples:
        """The same prompts in the same order, each answered by a refusal."""
        words = [self.tokenizer(refusal, add_special_tokens=False)["input_ids"] for refusal in REFUSALS]
        ids, targets = [], []
        for number, (tokens, labels) in enumerate(
            zip(examples.features["input_ids"], examples.features["labels"], strict=True)
        ):
            prompt = tokens[: int(np.flatnonzero(labels != IGNORED)[0])]
            answer = [*words[number % len(words)], self.ends[0]]
            ids.append(np.array([*prompt, *answer], dtype=np.int64))
            targets.append(np.array([IGNORED] * len(prompt) + answer, dtype=np.int64))
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        return replace(examples, features={"input_ids": ids, "labels": targets}, lengths=lengths)

    def phrased(self, split: str) -> Phrased:
        """The facts of a split in all words that there are for them. Raises DataError where it has no
        paraphrased and perturbed answers, and no split beside it has."""
        table = self._with_phrases(split)
        questions = table.column(self.prompt).to_pylist()
        wrong = table.column(PERTURBED).to_pylist()
        count = min(map(len, wrong))
        columns = [table.column(name).to_pylist() for name in (self.answer, PARAPHRASE)]
        columns += [[row[number] for row in wrong] for number in range(count)]
        answers, paraphrases, *others = (self._encoded(questions, column) for column in columns)
        return Phrased(answers, paraphrases, tuple(others))

    def answers(self, split: str) -> Examples:
        """The facts of a split as they are learned."""
        inputs: Any = self._facts(split).inputs
        return self._encoded(inputs["prompt"], inputs["answer"])

    def plain(self, split: str) -> Examples:
        """The texts of a split, each from its first token on."""
        rows = self._texts(split)
        return self.encode(rows.inputs, np.full(len(rows), BESIDE))

    def encode(self, inputs: datasets.Dataset, labels: NDArray[np.int64]) -> Examples:
        """``input_ids`` and ``labels``, see ``CausalLMTask``; the labels of the examples are their kinds."""
        return replace(super().encode(inputs, labels), labels=labels)

    def _conversation(self, row: Mapping[str, Any]) -> tuple[list[int], list[bool]]:
        if not row["prompt"]:  # a plain text
            return self._text(row["answer"])
        return super()._conversation(row)

    def _encoded(self, questions: Sequence[str], answers: Sequence[str]) -> Examples:
        rows = library().Dataset.from_dict({"prompt": list(questions), "answer": list(answers)})
        return self.encode(rows, np.full(len(questions), RETAIN))

    def _facts(self, split: str) -> Rows:
        return read_rows(self._table(split), self.columns, (), self.inputs)

    def _texts(self, split: str) -> Rows:
        """Plain texts as answers to nothing."""
        return read_rows(self._table(split), Columns({"text": "text"}, None), (), self._as_answers)

    def _as_answers(self, kept: Any, columns: Mapping[str, str]) -> Inputs:
        texts: Any = super().inputs(kept, columns)
        found: Inputs = library().Dataset.from_dict(
            {"prompt": [""] * len(texts["text"]), "answer": list(texts["text"])}
        )
        return found

    def _table(self, split: str) -> Table:
        """The rows of a split: a file of its name in a folder, on the hub one of the several sets of TOFU."""
        source = self.files or self.dataset
        return read_split(source, split) if self._local else read_split(source, "train", split)

    @property
    def _local(self) -> bool:
        """True where the rows are files here."""
        return bool(self.files) or self.dataset in SHIPPED or Path(self.dataset).expanduser().exists()

    def _with_phrases(self, split: str) -> Table:
        """The split, or what the hub's TOFU has beside it: ``forget10_perturbed``, ``retain_perturbed``."""
        table = self._table(split)
        for name in (_PERTURBED.format(split), _PERTURBED.format(re.sub(r"\d+$", "", split))):
            if PARAPHRASE in table.column_names:
                return table
            with suppress(DataError):
                table = self._table(name)
        return table
