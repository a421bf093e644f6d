"""Examples of several clients as one flat sequence of tokens, client after client. Behind the last stand a
few rows that belong to nobody, so that passes have few different sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from fedsa_lora.learning.cohort.attention import Groups
from fedsa_lora.learning.cohort.passes import rounded
from fedsa_lora.learning.cohort.slots import Slots, Spans
from fedsa_lora.learning.moving import moved, to_device
from fedsa_lora.tasks.task import Batch, Examples
from fedsa_lora.tasks.token_losses import IGNORED

Indices = NDArray[np.int64]
Collate = Callable[[Examples, Indices], Batch]


@dataclass(frozen=True, eq=False)
class Packed:
    """A flat batch.

    ``inputs`` are (1, ``rows``) for text, (sequences, ...) for images. ``lengths`` (sequences,) are tokens,
    ``sequences`` and ``tokens`` counts for each client of the block, 0 for one that has no part in it.
    ``targets`` are classes, (sequences,), or the next token of each place in ``kept`` where words are
    learned; ``targets_of`` counts them for each client.
    """

    inputs: Mapping[str, torch.Tensor]
    lengths: Indices
    sequences: list[int]
    tokens: list[int]
    targets: torch.Tensor
    targets_of: list[int]
    kept: torch.Tensor | None = None

    @property
    def flat(self) -> bool:
        """False for images, which the model makes tokens of."""
        return "position_ids" in self.inputs

    @cached_property
    def groups(self) -> Groups:
        """The sequences by length, as attention takes them."""
        return Groups.of(self.lengths, self.rows)

    @property
    def rows(self) -> int:
        """Tokens, with those rows of text that belong to nobody."""
        return self.inputs["position_ids"].shape[1] if self.flat else sum(self.tokens)

    @property
    def begins(self) -> Indices:
        """Place of the first token of each sequence."""
        return np.cumsum(self.lengths) - self.lengths

    def spans(self, rows: int) -> Spans:
        """(client, begin, end) of the rows of each client that has any: rows of tokens or, behind the
        backbone, of sequences, or of the places that words are learned in; of images as many for each as the
        model makes of one."""
        if rows == self.rows:
            counts = self.tokens
        elif self.kept is not None and rows == len(self.kept):
            counts = self.targets_of
        else:
            each = rows // len(self.lengths)
            counts = [each * count for count in self.sequences]
        found: list[tuple[int, int, int]] = []
        begin = 0
        for client, count in enumerate(counts):
            if count:
                found.append((client, begin, begin + count))
            begin += count
        return found

    def slots(self, rows: int, kind: torch.dtype) -> Slots | None:
        """The slots of the same rows, which all layers have in common, for products in a kind of numbers;
        None where ``Slots.of`` has none."""
        if rows not in self._slots:
            self._slots[rows] = Slots.of(self.spans(rows), self.targets.device, kind)
        return self._slots[rows]

    @cached_property
    def _slots(self) -> dict[int, Slots | None]:
        return {}


class Corpus:
    """The examples of the clients of a block, one client's after another's, on the model's device. Images
    are batched by the task's ``collate``, as it makes of them what the model reads.

    Raises nothing for a client without examples: it is never chosen from.
    """

    def __init__(self, parts: Sequence[Examples], device: torch.device, collate: Collate) -> None:
        self._parts, self._collate = parts, collate
        different = list({id(part): part for part in parts}.values())
        firsts = np.cumsum([0, *map(len, different)])
        first = {id(part): begin for part, begin in zip(different, firsts, strict=False)}
        self._first = [int(first[id(part)]) for part in parts]
        self._lengths = np.concatenate([part.lengths for part in different])
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._labels = torch.from_numpy(np.concatenate([part.labels for part in different]))
        self._device = device
        self._flat: dict[str, torch.Tensor] = {}
        if not _are_images(different):
            for name in different[0].features:
                rows = [row for part in different for row in part.features[name]]
                self._flat[name] = torch.from_numpy(np.concatenate(rows))
        self._flat.pop("attention_mask", None)  # of ones, as nothing is padded

    def pack(self, chosen: Sequence[Indices]) -> Packed:
        """The examples at the indices ``chosen`` of each client's own, of one client at least."""
        at = np.concatenate([first + part for first, part in zip(self._first, chosen, strict=True)])
        sequences = [len(part) for part in chosen]
        lengths = self._lengths[at]
        tokens = _sums(lengths, sequences)
        labels = self._labels[torch.from_numpy(at)]
        if not self._flat:
            inputs = self._images(chosen)
            return self._packed(inputs, lengths, sequences, tokens, labels, sequences)
        begins = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum())
        nobody = (0, rounded(len(places)) - len(places))  # copies of the corpus' first token
        here = torch.from_numpy(np.pad(places + np.repeat(self._starts[at] - begins, lengths), nobody))
        inputs = {name: tokens_[here].unsqueeze(0) for name, tokens_ in self._flat.items()}
        positions = np.pad(places - np.repeat(begins, lengths), nobody)
        inputs["position_ids"] = torch.from_numpy(positions).unsqueeze(0)
        if "labels" not in inputs:
            return self._packed(inputs, lengths, sequences, tokens, labels, sequences)
        following = inputs.pop("labels")[0].roll(-1)
        following[torch.from_numpy(begins + lengths - 1)] = IGNORED
        following[len(places) :] = IGNORED
        kept = (following != IGNORED).nonzero()[:, 0]
        counts = np.diff(np.searchsorted(kept.numpy(), np.cumsum([0, *tokens])))
        return self._packed(inputs, lengths, sequences, tokens, following[kept], counts.tolist(), kept)

    def _images(self, chosen: Sequence[Indices]) -> dict[str, torch.Tensor]:
        """The batch of each client, one after the other."""
        batches = [
            self._collate(part, indices)
            for part, indices in zip(self._parts, chosen, strict=True)
            if len(indices)
        ]
        names = [name for name in batches[0] if name != "labels"]
        return {name: torch.cat([batch[name] for batch in batches]) for name in names}

    def _packed(
        self,
        inputs: Mapping[str, torch.Tensor],
        lengths: Indices,
        sequences: list[int],
        tokens: list[int],
        targets: torch.Tensor,
        targets_of: list[int],
        kept: torch.Tensor | None = None,
    ) -> Packed:
        targets = moved(targets, self._device)
        kept = None if kept is None else moved(kept, self._device)
        return Packed(
            to_device(dict(inputs), self._device), lengths, sequences, tokens, targets, targets_of, kept
        )


def _are_images(parts: Sequence[Examples]) -> bool:
    """True where an example is more than a sequence of tokens."""
    first = next(part for part in parts if len(part))
    return any(rows[0].ndim > 1 for rows in first.features.values())


def _sums(lengths: Indices, counts: Sequence[int]) -> list[int]:
    """Sums of consecutive parts of ``lengths``."""
    ends = np.cumsum([0, *counts])
    totals = np.concatenate([[0], np.cumsum(lengths)])[ends]
    sums: list[int] = np.diff(totals).tolist()
    return sums
