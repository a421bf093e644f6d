"""Attention within each sequence of a flat batch: sequences are taken in one to three groups of similar
length, and padded within a group only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface

from fedsa_lora.learning.lengths import best_cut

# by group, dropout of probabilities (sequences x heads, longest, longest); none without dropout
Masks = Sequence[Callable[[torch.Tensor], torch.Tensor]] | None

NAME = "fedsa_cohort"  # of this attention among those of transformers
GROUPS = 3
LANES = 8  # float32 of a vector register: softmax over rows of other lengths takes up to 14 times as long
WORTH = 4096  # scores of a head and layer that a further group must save


@dataclass(frozen=True)
class _Group:
    """``members`` are sequences of at most ``longest`` tokens, a multiple of ``LANES``, whose padded tokens
    begin at ``begin``. ``beyond`` (sequences, 1, 1, longest) marks padding, None where there is none."""

    members: NDArray[np.int64]
    longest: int
    begin: int
    beyond: torch.Tensor | None

    @property
    def sequences(self) -> int:
        return len(self.members)


@dataclass(frozen=True, eq=False)
class Groups:
    """The sequences of a flat batch in groups. ``tokens`` (padded,) is the token in each padded place, in a
    place beyond a sequence its last one; ``places`` (rows,) the padded place of each token, and 0 for rows
    that belong to nobody: what they are handed reaches no one."""

    groups: tuple[_Group, ...]
    tokens: NDArray[np.int64]
    places: NDArray[np.int64]
    _by_heads: dict[int, _Index] = field(default_factory=dict)

    @classmethod
    def of(cls, lengths: NDArray[np.int64], rows: int) -> Groups:
        order = np.argsort(lengths, kind="stable")
        begins = np.cumsum(lengths) - lengths
        groups, tokens, filled = [], [], 0
        places = np.zeros(rows, np.int64)
        for part in np.split(order, _cuts(lengths[order])):
            longest = -(-int(lengths[part[-1]]) // LANES) * LANES
            steps = np.arange(longest)
            held = steps < lengths[part, None]
            at = begins[part, None] + np.minimum(steps, lengths[part, None] - 1)
            places[at[held]] = filled + np.flatnonzero(held)
            beyond = None if held.all() else torch.from_numpy(~held)[:, None, None, :]
            groups.append(_Group(part, longest, filled, beyond))
            tokens.append(at.reshape(-1))
            filled += at.size
        return cls(tuple(groups), np.concatenate(tokens), places)

    def index(self, heads: int, device: torch.device) -> _Index:
        """Rows of one head's token each, for tensors of rows (tokens x heads, width)."""
        if heads not in self._by_heads:
            self._by_heads[heads] = _Index.of(self, heads, device)
        return self._by_heads[heads]


@dataclass(frozen=True, eq=False)
class _Index:
    """Positions of rows of (tokens x heads): ``gather`` (padded,) the row in each padded place, by group
    (sequence, head, token); ``back`` (tokens x heads,) the padded place of each row; ``unused`` the padded
    places that no token has. ``masks`` by group."""

    gather: torch.Tensor
    back: torch.Tensor
    unused: torch.Tensor
    masks: tuple[torch.Tensor | None, ...]

    @classmethod
    def of(cls, groups: Groups, heads: int, device: torch.device) -> _Index:
        head = np.arange(heads)
        gather, slots = [], np.empty(len(groups.tokens) * heads, np.int64).reshape(-1, heads)
        for group in groups.groups:
            shape, size = (group.sequences, group.longest), group.sequences * group.longest
            at = slice(group.begin, group.begin + size)
            tokens = groups.tokens[at].reshape(shape)
            gather.append((tokens[:, None, :] * heads + head[:, None]).reshape(-1))
            slot = np.arange(group.sequences)[:, None] * heads * group.longest + np.arange(group.longest)
            slots[at] = group.begin * heads + slot.reshape(-1, 1) + head * group.longest
        back = slots[groups.places].reshape(-1)
        used = np.zeros(slots.size, bool)
        used[back] = True
        arrays = (np.concatenate(gather), back, np.flatnonzero(~used))
        gathered, backwards, unused = (torch.from_numpy(array).to(device) for array in arrays)
        masks = tuple(None if g.beyond is None else g.beyond.to(device) for g in groups.groups)
        return cls(gathered, backwards, unused, masks)


def _cuts(lengths: NDArray[np.int64]) -> list[int]:
    """Cuts sorted lengths into groups, so that the fewest scores are computed."""
    cuts = [0, len(lengths)]
    for _ in range(GROUPS - 1):
        best, saved = 0, WORTH
        for begin, end in pairwise(cuts):
            cut, gain = best_cut(lengths[begin:end] ** 2)
            if gain > saved:
                saved, best = gain, begin + cut
        if not best:
            break
        cuts = sorted([*cuts, best])
    return cuts[1:-1]


class _Attention(torch.autograd.Function):
    """softmax(s q k^T) v within each sequence; q, k, v (tokens x heads, width)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        groups: Groups,
        heads: int,
        scale: float,
        causal: bool,
        masks: Masks,
    ) -> torch.Tensor:
        index, exact = groups.index(heads, q.device), torch.promote_types(v.dtype, torch.float32)
        q, k, v = (x.index_select(0, index.gather) for x in (q, k, v))
        q.mul_(scale)
        out, weights = torch.empty_like(v), []
        for at, (group, beyond) in enumerate(zip(groups.groups, index.masks, strict=True)):
            q_, k_, v_, out_ = (_part(x, group, heads) for x in (q, k, v, out))
            scores = torch.bmm(q_, k_.mT)
            if beyond is not None:
                scores.view(group.sequences, heads, group.longest, -1).masked_fill_(beyond, -torch.inf)
            if causal:
                later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu_(1)
                scores.masked_fill_(later, -torch.inf)
            weights.append(torch.softmax(scores.to(exact), dim=-1).to(v.dtype))
            drop = masks[at] if masks else _nothing
            torch.bmm(drop(weights[-1]), v_, out=out_)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.groups, ctx.heads, ctx.scale, ctx.masks = groups, heads, scale, masks
        return out.index_select(0, index.back)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        q, k, v, *weights = ctx.saved_tensors
        groups, heads, index = ctx.groups, ctx.heads, ctx.groups.index(ctx.heads, q.device)
        exact = torch.promote_types(v.dtype, torch.float32)
        above = gradients[0].index_select(0, index.gather)
        above.index_fill_(0, index.unused, 0)
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        for at, (group, p) in enumerate(zip(groups.groups, weights, strict=True)):
            q_, k_, v_, above_ = (_part(x, group, heads) for x in (q, k, v, above))
            drop = ctx.masks[at] if ctx.masks else _nothing
            torch.bmm(drop(p).mT, above_, out=_part(dv, group, heads))
            dp = drop(torch.bmm(above_, v_.mT)).to(exact)
            ds = torch._softmax_backward_data(dp, p.to(exact), -1, exact).to(p.dtype)
            torch.bmm(ds, k_, out=_part(dq, group, heads))
            torch.bmm(ds.mT, q_, out=_part(dk, group, heads))
        dq.mul_(ctx.scale)
        dq, dk, dv = (x.index_select(0, index.back) for x in (dq, dk, dv))
        return dq, dk, dv, None, None, None, None, None


def _nothing(weights: torch.Tensor) -> torch.Tensor:
    return weights


def _part(rows: torch.Tensor, group: _Group, heads: int) -> torch.Tensor:
    """A group's padded rows as (sequences x heads, longest, width)."""
    size = group.sequences * group.longest * heads
    part = rows[group.begin * heads : group.begin * heads + size]
    return part.view(group.sequences * heads, group.longest, -1)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    groups: Groups,
    masks_of: Callable[[Any], Masks],
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of transformers' interface over a flat batch: query (1, heads, tokens, width), key and value
    with as many heads or a divisor of it. ``masks_of`` a layer are those of its probabilities. Returns (1,
    tokens, heads, width)."""
    heads, tokens, width = query.shape[1:]
    shared = heads // key.shape[1]
    # rotary positions are computed in float32, and leave q and k in it
    q, k, v = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
    if shared > 1:
        k, v = k.repeat_interleave(shared, dim=2), v.repeat_interleave(shared, dim=2)
    rows = [x.reshape(tokens * heads, width) for x in (q, k, v)]
    causal = bool(getattr(module, "is_causal", False))
    out = _Attention.apply(*rows, groups, heads, scaling, causal, masks_of(module))  # type: ignore[no-untyped-call]
    return out.view(1, tokens, heads, width), None


AttentionInterface.register(NAME, attend)
