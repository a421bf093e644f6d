"""Rows of several clients as matrices of one size, so that a product of all of them is one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedsa_lora.learning.cohort.passes import rounded
from fedsa_lora.learning.cohort.rows import Views

# Clients, and rows of each, whose products a CPU computes sooner at once in float32 (benchmarks/gpu.py)
MANY, FEW = 8, 64
PADDED = 4  # times the rows that there are is the most that they may be spread over
Spans = Sequence[tuple[int, int, int]]  # (client, begin, end) of rows


@dataclass(frozen=True, eq=False)
class Slots:
    """The first n rows (rows, width), those of neighbouring ``clients``, spread over (clients, ``longest``,
    width) with zeros behind the rows of each; ``place`` (n,) are their places in it.

    A product of matrices works client by client, so a NaN stays with its client.
    """

    clients: slice
    longest: int
    place: torch.Tensor

    @classmethod
    def of(cls, spans: Spans, device: torch.device, kind: torch.dtype) -> Slots | None:
        """None where one product after the other is better: on a CPU in float32, except for many clients of
        few rows, and for a client alone or clients that are no neighbours."""
        clients = [client for client, _, _ in spans]
        if len(clients) < 2 or clients[-1] - clients[0] >= len(clients):
            return None
        longest, rows = rounded(max(end - begin for _, begin, end in spans)), spans[-1][2]
        if len(clients) * longest > PADDED * rows or not _launches_cost(device, kind, len(clients), longest):
            return None
        place = [
            torch.arange(at * longest, at * longest + end - begin) for at, (_, begin, end) in enumerate(spans)
        ]
        return cls(slice(clients[0], clients[-1] + 1), longest, torch.cat(place).to(device))

    def part(self, views: Views) -> torch.Tensor:
        """A tensor of these clients, (clients, ...)."""
        return views.every[self.clients]

    def own(self, rows: torch.Tensor) -> torch.Tensor:
        """Those of the rows that the clients have."""
        return rows[: len(self.place)]

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (rows, width) as (clients, longest, width)."""
        clients, width = self.clients.stop - self.clients.start, rows.shape[1]
        whole = rows.new_zeros(clients * self.longest, width)
        return whole.index_copy_(0, self.place, self.own(rows)).view(clients, self.longest, width)

    def joined(self, spread: torch.Tensor) -> torch.Tensor:
        """The rows (n, width) of (clients, longest, width)."""
        return spread.flatten(0, 1).index_select(0, self.place)


def _launches_cost(device: torch.device, kind: torch.dtype, clients: int, longest: int) -> bool:
    """True where calling a product costs more than the zeros that are computed with all at once. In bf16 a
    CPU compiles a kernel for each number of rows."""
    few = clients >= MANY and longest <= FEW
    return device.type != "cpu" or kind == torch.bfloat16 or few
