"""Dropout over flat tokens: the masks that each client draws for its own batch, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsa_lora.learning.cohort.attention import Groups
from fedsa_lora.learning.cohort.packed import Packed
from fedsa_lora.learning.dropout import Sites, Strip


@dataclass(frozen=True, eq=False)
class Mask:
    """1 where a value is kept, of any floating type, and 1 / (1 - p)."""

    kept: torch.Tensor
    scale: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x with what is dropped at 0, and the rest scaled; a gradient goes the same way."""
        return (x * self.kept).mul_(self.scale)


@dataclass(frozen=True, eq=False)
class FlatMasks:
    """Masks of a flat batch: ``tokens`` (rows, width of all sites), ``examples`` (sequences, width) and
    ``attention``, by sequence (heads of all sites, tokens, tokens); True keeps."""

    sites: Sites
    tokens: NDArray[np.bool_]
    examples: NDArray[np.bool_]
    attention: Sequence[NDArray[np.bool_]]
    groups: Groups
    _calls: Counter[nn.Module] = field(default_factory=Counter)

    @classmethod
    def draw(cls, sites: Sites, seeds: Mapping[int, int], step: int, packed: Packed) -> FlatMasks:
        """Those of each client of a flat batch, from its seed and the step."""
        ends = np.cumsum(packed.sequences)
        drawn = []
        for client, seed in seeds.items():
            lengths = packed.lengths[ends[client] - packed.sequences[client] : ends[client]]
            drawn.append(
                sites.draw(seed, step, lengths if packed.flat else np.full_like(lengths, sites.span))
            )
        nobody = np.zeros((packed.rows - sum(packed.tokens), sites.tokens.width), bool)
        return cls(
            sites,
            np.concatenate([*(masks.tokens for masks in drawn), nobody]),
            np.concatenate([masks.examples for masks in drawn]),
            [square for masks in drawn for square in masks.attention],
            packed.groups,
        )

    def of(self, layer: nn.Module, kind: torch.dtype) -> Mask:
        """The mask of the next call of a dropout layer, (tokens, width) or (sequences, width). Raises
        KeyError for a layer that is no site: its dropout would be lost."""
        strip, masks = self.sites.tokens, self.tokens
        if layer not in strip.columns:
            strip, masks = self.sites.examples, self.examples
        columns = strip.columns[layer][self._calls[layer]]
        self._calls[layer] += 1
        kept = torch.from_numpy(masks[:, columns].view(np.uint8)).to(kind)
        return Mask(kept, _scale(strip, columns))

    def of_attention(self, layer: nn.Module, kind: torch.dtype) -> list[Mask] | None:
        """The masks of the probabilities of an attention layer by group, (sequences x heads, longest,
        longest)."""
        strip = self.sites.attention
        if layer not in strip.columns:
            return None
        (columns,) = strip.columns[layer]
        scale = _scale(strip, columns)
        found = []
        for group, padded in zip(self.groups.groups, self._padded, strict=True):
            kept = torch.from_numpy(padded[:, columns]).to(kind)
            found.append(Mask(kept.view(-1, group.longest, group.longest), scale))
        return found

    @cached_property
    def _padded(self) -> list[NDArray[np.uint8]]:
        """Masks of attention by group, (sequences, heads of all sites, longest, longest)."""
        found = []
        for group in self.groups.groups:
            shape = (group.sequences, self.sites.attention.width, group.longest, group.longest)
            padded = np.zeros(shape, np.uint8)
            for at, sequence in enumerate(group.members):
                square = self.attention[sequence]
                padded[at, :, : square.shape[1], : square.shape[2]] = square
            found.append(padded)
        return found


def _scale(strip: Strip, columns: slice) -> float:
    return float(strip.scales[columns.start])


class _Dropped(torch.autograd.Function):
    """A mask on x; the gradient goes through the same mask."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mask: Mask) -> torch.Tensor:
        ctx.mask = mask
        return mask(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return ctx.mask(gradients[0]), None


def dropped(x: torch.Tensor, mask: Mask) -> torch.Tensor:
    """x (..., width), whose rows the mask has, with dropout."""
    flat = x.reshape(mask.kept.shape)
    out: torch.Tensor = _Dropped.apply(flat, mask)  # type: ignore[no-untyped-call]
    return out.view(x.shape)
