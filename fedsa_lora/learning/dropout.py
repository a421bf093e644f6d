"""Dropout masks of a forward pass, drawn in one call from a seed, over real tokens alone.

A mask depends neither on padding nor on the other examples' clients: a trainer that computes the tokens of
several clients in one row draws the masks of each client and sets them side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

LEVELS = 1 << 16  # a random number has 16 bits: a probability is off by 2^-17 at most


@dataclass(frozen=True, eq=False)
class Site:
    """One call of a dropout layer in a forward pass: the layer, or the attention layer that drops
    probabilities; the width of its input, of attention its heads; and the probability to drop."""

    module: nn.Module
    width: int
    p: float

    @property
    def threshold(self) -> int:
        """Random numbers below it drop."""
        return min(round(self.p * LEVELS), LEVELS - 1)

    @property
    def scale(self) -> float:
        """1 / (1 - p), of the probability as 16 bits hold it, so that the mean stays."""
        return LEVELS / (LEVELS - self.threshold)


@dataclass(frozen=True, eq=False)
class Strip:
    """Sites side by side, in the order in which a forward pass meets them."""

    sites: tuple[Site, ...] = ()

    @cached_property
    def width(self) -> int:
        """Of all sites together."""
        return sum(site.width for site in self.sites)

    @cached_property
    def columns(self) -> dict[nn.Module, list[slice]]:
        """The columns of each layer's calls, in their order."""
        found: dict[nn.Module, list[slice]] = {}
        start = 0
        for site in self.sites:
            found.setdefault(site.module, []).append(slice(start, start + site.width))
            start += site.width
        return found

    @cached_property
    def thresholds(self) -> NDArray[np.uint16]:
        """By column (width,)."""
        values = np.array([site.threshold for site in self.sites], dtype=np.uint16)
        return values.repeat([site.width for site in self.sites])

    @cached_property
    def scales(self) -> NDArray[np.float32]:
        """By column (width,)."""
        values = np.array([site.scale for site in self.sites], dtype=np.float32)
        return values.repeat([site.width for site in self.sites])


@dataclass(frozen=True, eq=False)
class Sites:
    """All dropout of a model that masks can be drawn for: on tokens (tokens, width), on whole examples, such
    as pooled ones (examples, width), and on attention probabilities (heads, tokens, tokens).

    ``span`` is the number of tokens of an example where a batch has no attention mask; ``configs`` are those
    of transformers that say how the attention with sites is computed.
    """

    tokens: Strip = Strip()
    examples: Strip = Strip()
    attention: Strip = Strip()
    span: int = 0
    configs: tuple[Any, ...] = ()

    def draw(self, seed: int, number: int, lengths: Sequence[int] | NDArray[np.int64]) -> Masks:
        """The masks of forward pass ``number`` of a training with ``seed``, for examples of so many real
        tokens: in one draw of SFC64, first all tokens, example after example, then the examples, then the
        attention of each example."""
        counts = np.asarray(lengths, dtype=np.int64)
        areas = [int(counts.sum()) * self.tokens.width, len(counts) * self.examples.width]
        ends = np.cumsum([*areas, *(self.attention.width * counts**2)])
        stream = np.random.SFC64(np.random.SeedSequence((seed, number)))
        numbers = stream.random_raw(-(-int(ends[-1]) // 4)).view(np.uint16)  # four of 16 bits in one of 64
        tokens, examples, *squares = np.split(numbers[: ends[-1]], ends[:-1])
        heads = self.attention.thresholds[:, None, None]
        attention = [
            square.reshape(self.attention.width, count, count) >= heads
            for square, count in zip(squares, counts, strict=True)
        ]
        return Masks(
            tokens.reshape(int(counts.sum()), self.tokens.width) >= self.tokens.thresholds,
            examples.reshape(len(counts), self.examples.width) >= self.examples.thresholds,
            attention,
        )


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of a forward pass; True keeps.

    ``tokens`` (real tokens, width of all token sites), ``examples`` (examples, width), ``attention`` by
    example (heads of all sites, tokens, tokens).
    """

    tokens: NDArray[np.bool_]
    examples: NDArray[np.bool_]
    attention: list[NDArray[np.bool_]]
