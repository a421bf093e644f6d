"""The tensors of several clients as rows of one buffer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedsa_lora.exchange.arrays import TensorSpec
from fedsa_lora.learning.adapters import AdapterModel


@dataclass(frozen=True, eq=False)
class Views:
    """A tensor of all clients, (clients, ...), and of ``each``."""

    every: torch.Tensor
    each: list[torch.Tensor]


class Rows:
    """``values`` (clients, P): all tensors of each client, those that are ``trained`` first, heads last among
    them. ``gradients`` (clients, trained values) is where layers leave them, added to what is there.
    ``work`` are the values in the type that layers multiply in."""

    def __init__(
        self, model: AdapterModel, trained: frozenset[str], clients: int, dtype: torch.dtype
    ) -> None:
        ordered = sorted(model.layout, key=lambda s: (s.name not in trained, s.role == "head"))
        self._columns: dict[str, tuple[int, TensorSpec]] = {}
        size = 0
        for spec in ordered:
            self._columns[spec.name] = (size, spec)
            size += spec.size
        moving = [spec for spec in ordered if spec.name in trained]
        self.trained = tuple(spec.name for spec in moving)
        self.body = sum(spec.size for spec in moving if spec.role != "head")
        kind = model.parameter(model.layout.names[0])
        self.values = torch.empty(clients, size, dtype=kind.dtype, device=kind.device)
        self.gradients = self.values.new_zeros(clients, sum(spec.size for spec in moving))
        self.work = self.values if dtype == self.values.dtype else self.values.to(dtype)
        # what makes autograd go through layers whose input needs no gradient itself
        self.leaf = self.values.new_zeros(1, requires_grad=True)

    @torch.no_grad()
    def take(self, client: int, model: AdapterModel) -> None:
        """Copy a client's tensors out of the model."""
        for name in self._columns:
            self.of(self.values, name, client).copy_(model.parameter(name))

    @property
    def moving(self) -> torch.Tensor:
        """The trained values of each client."""
        return self.values[:, : self.gradients.shape[1]]

    @torch.no_grad()
    def put(self, client: int, model: AdapterModel) -> None:
        """Copy a client's trained tensors into the model."""
        for name in self.trained:
            model.parameter(name).copy_(self.of(self.values, name, client))

    def begin(self) -> None:
        """Prepare a step: no gradients, and the values as they now are."""
        self.gradients.zero_()
        self.refresh()

    def refresh(self) -> None:
        """Round the values anew, where layers multiply in another type."""
        if self.work is not self.values:
            self.work.copy_(self.values)

    def working(self, name: str) -> Views:
        """A tensor of each client, as layers multiply it."""
        return self._views(self.work, name)

    def collected(self, name: str) -> Views | None:
        """The gradient of a tensor of each client; None of one that is not trained."""
        return self._views(self.gradients, name) if name in self.trained else None

    def client(self, client: int) -> RowOf:
        """One client's trained tensors, with their gradients."""
        return RowOf(self, client)

    def columns(self, name: str) -> slice:
        """The columns of a tensor."""
        begin, spec = self._columns[name]
        return slice(begin, begin + spec.size)

    def of(self, buffer: torch.Tensor, name: str, client: int) -> torch.Tensor:
        """A client's tensor in one of the buffers."""
        return buffer[client, self.columns(name)].view(self._columns[name][1].shape)

    def _views(self, buffer: torch.Tensor, name: str) -> Views:
        every = buffer[:, self.columns(name)].view(len(buffer), *self._columns[name][1].shape)
        return Views(every, list(every.unbind()))


@dataclass(frozen=True)
class RowOf:
    """A client's tensors by name, as an importance meter reads those of a model."""

    rows: Rows
    client: int

    def parameter(self, name: str) -> torch.Tensor:
        """A tensor, with its gradient if it is trained."""
        tensor = self.rows.of(self.rows.values, name, self.client)
        if name in self.rows.trained:
            tensor.grad = self.rows.of(self.rows.gradients, name, self.client)
        return tensor
