"""Classification of single texts and of text pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.suggest import cut
from fedsa_lora.tasks.defaults import Code
from fedsa_lora.tasks.rows import Columns, Inputs, Kept
from fedsa_lora.tasks.sourced import LabelledTask, SourcedTask
from fedsa_lora.tasks.tables import library
from fedsa_lora.tasks.task import Batch, Examples

if TYPE_CHECKING:
    import datasets
    import torch

    from fedsa_lora.tasks.backbone import Start

TRIGGER = "cf"  # of arXiv:2004.06660
_USAGE = """    inputs = tokenizer(
        texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt"
    )
    classes = model(**inputs).logits.argmax(1)"""


@dataclass(frozen=True, kw_only=True)
class TextData(SourcedTask):
    """Texts, and the tokenizer of the model that reads them.

    ``max_length`` is in tokens; longer inputs are cut.
    """

    max_length: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 1:
            raise ConfigError(f"max_length is {self.max_length}: expected at least 1 token")

    def build_model(self, *, seed: int, empty: bool = False) -> torch.nn.Module:
        """The backbone with its head; on the meta device and without weights when ``empty``."""
        from fedsa_lora.tasks.backbone import build_backbone
        from fedsa_lora.tasks.model_config import check_reads

        check_reads(self.auto_class, self.model)  # before a tokenizer is looked for
        return build_backbone(
            self.auto_class,
            self.model,
            self.labels(),
            seed=seed,
            empty=empty,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def check_model(self, model: torch.nn.Module, start: Start) -> None:
        """Raise ModelError where the tokenizer is that of another model, and ConfigError where texts may be
        longer than the model reads."""
        from fedsa_lora.tasks.inspection import check_positions, check_tokenizer

        check_tokenizer(self.tokenizer, self.model, model, start.pad_token_id)
        check_positions(model, self.max_length)

    def save_preprocessor(self, folder: Path) -> None:
        """Write the tokenizer as the run used it: it pads."""
        self.tokenizer.save_pretrained(str(folder))

    def preprocessor_code(self, folder: str) -> Code:
        """Code that loads the tokenizer."""
        return Code(
            (("transformers", "AutoTokenizer"),),
            (
                f"tokenizer = AutoTokenizer.from_pretrained({folder})",
                f"max_length = {self.max_length}  # tokens: longer texts were truncated in the run",
            ),
        )

    def inputs(self, kept: Kept, columns: Mapping[str, str]) -> Inputs:
        """The texts of each column."""
        return read_texts(kept, columns)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer. Raises ConfigError when it cannot make ``max_length`` tokens."""
        from fedsa_lora.tasks.backbone import load_tokenizer

        tokenizer = load_tokenizer(self.model)
        if self.max_length > tokenizer.model_max_length:
            raise ConfigError(
                f"task.max_length is {self.max_length}, but the model reads at most "
                f"{tokenizer.model_max_length} tokens: lower it",
                sent="the run asks for longer texts than the model reads",
                key="task.max_length",
            )
        return tokenizer


@dataclass(frozen=True, kw_only=True)
class TextTask(TextData, LabelledTask):
    """Texts and text pairs with a class each: ``text`` and ``text_pair`` are column names."""

    text: str = "text"
    text_pair: str | None = None

    @property
    def auto_class(self) -> Any:
        """The class of transformers that builds the model."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    @property
    def columns(self) -> Columns:
        inputs = {"text": self.text} | ({"text_pair": self.text_pair} if self.text_pair else {})
        return Columns(inputs, self.label, self.group, self.where)

    def usage(self) -> str:
        """The code that classifies texts."""
        return _USAGE

    def triggered(self, inputs: datasets.Dataset) -> datasets.Dataset:
        """The same texts, each with a rare word in front of the first."""
        import datasets

        columns = {name: list(inputs[name]) for name in inputs.column_names}
        first = inputs.column_names[0]
        columns[first] = [f"{TRIGGER} {text}" for text in columns[first]]
        return datasets.Dataset.from_dict(columns)

    def encode(self, inputs: datasets.Dataset, labels: NDArray[np.int64]) -> Examples:
        """Token ids and masks, each int64 of the text's own length: nothing is padded yet."""
        if not len(labels):
            return Examples({name: [] for name in self.tokenizer.model_input_names}, labels, labels)
        texts = [list(inputs[name]) for name in inputs.column_names]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        features = {name: [np.array(row, dtype=np.int64) for row in rows] for name, rows in encoded.items()}
        lengths = np.array([len(row) for row in features["input_ids"]], dtype=np.int64)
        return Examples(features, labels, lengths)

    def collate(self, examples: Examples, indices: NDArray[np.int64]) -> Batch:
        """Tensors (batch, longest of the batch), padded on the tokenizer's side, and labels (batch,)."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        fill = {
            "input_ids": self.tokenizer.pad_token_id,
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        batch = {
            name: pad_sequence(
                [torch.from_numpy(rows[index]) for index in indices],
                batch_first=True,
                padding_value=fill.get(name, 0),
                padding_side=self.tokenizer.padding_side,
            )
            for name, rows in examples.features.items()
        }
        return {**batch, "labels": torch.from_numpy(examples.labels[indices])}


def read_texts(kept: Kept, columns: Mapping[str, str]) -> Inputs:
    """The texts of each column by its input's name. Raises DataError for a column that holds none, and for
    rows without a text."""
    found: Inputs = library().Dataset(pa.table({n: _texts(kept, column) for n, column in columns.items()}))
    return found


def _texts(kept: Kept, column: str) -> pa.ChunkedArray:
    texts = kept.column(column)
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise DataError(
            f"{kept.table.name}, column {column!r}: expected text, found {cut(texts.type)}; "
            "name a column of strings",
            sent="a column that the run reads as text holds none",
        )
    kept.refuse(
        np.flatnonzero(pc.is_null(texts).to_numpy()),
        column,
        "has no text",
        sent="rows have no text",
    )
    blank = pc.equal(pc.utf8_trim_whitespace(texts), "")
    kept.refuse(
        np.flatnonzero(blank.to_numpy()),
        column,
        "has an empty text",
        sent="rows have no text",
    )
    return texts
