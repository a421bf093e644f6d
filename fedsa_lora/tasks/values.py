"""Classes, groups and filter values as words: what a cell says, without what spreadsheets and pandas add."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_WHOLE = re.compile(r"[+-]?\d{1,18}")  # longer ones are names
_WHOLE_AS_FRACTION = re.compile(r"([+-]?\d+)\.0*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


@dataclass(frozen=True)
class Words:
    """A column as words: ``words`` are those of its distinct values ``raw``, "" for a missing one, and
    ``codes`` (n,) say which of them each row holds."""

    raw: list[Any]
    words: list[str]
    codes: NDArray[np.int64]

    @property
    def numbers(self) -> bool:
        """True where every word is a number."""
        return all(_NUMBER.fullmatch(word) for word in self.words)

    @property
    def truth_values(self) -> bool:
        """True where the file says true or false, and no words for it."""
        return all(isinstance(value, bool) for value in self.raw)

    def rows(self, faulty: Callable[[str], bool]) -> NDArray[np.int64]:
        """The rows whose word is so."""
        codes = [code for code, word in enumerate(self.words) if faulty(word)]
        return np.flatnonzero(np.isin(self.codes, codes))

    def changed(self) -> tuple[Any, str, int] | None:
        """A text that is read as another word, that word, and how many rows hold such texts."""
        codes = [
            code
            for code, (value, word) in enumerate(zip(self.raw, self.words, strict=True))
            if isinstance(value, str) and value != word
        ]
        if not codes:
            return None
        return self.raw[codes[0]], self.words[codes[0]], int(np.isin(self.codes, codes).sum())


def words_of(column: pa.ChunkedArray) -> Words:
    """The values of a column, none of them nested, as words.

    A word is in Unicode's composed form and has no blanks around it; truth values are True and False. Where
    all are numbers, whole ones have no fraction: pandas writes 1.0 once a cell of the column is empty.
    """
    encoded = pc.dictionary_encode(column, null_encoding="encode").combine_chunks()
    raw = encoded.dictionary.to_pylist()
    words = [word_of(value) for value in raw]
    if all(_NUMBER.fullmatch(word) for word in words if word):
        words = [whole(word) for word in words]
    return Words(raw, words, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64))


def word_of(value: Any) -> str:
    """One value as a word; "" for a missing one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return unicodedata.normalize("NFC", str(value)).strip()


def whole(word: str) -> str:
    """1 for 1.0; any other word as it is."""
    found = _WHOLE_AS_FRACTION.fullmatch(word)
    return found[1] if found else word


def is_fraction(word: str) -> bool:
    """A number with a fraction, such as 1.5."""
    return _NUMBER.fullmatch(word) is not None and "." in whole(word)


def are_whole(words: Collection[str]) -> bool:
    """True where all are whole numbers, so that they have an order."""
    return all(_WHOLE.fullmatch(word) for word in words)
