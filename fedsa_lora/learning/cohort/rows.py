"""The tensors of several clients as rows of one buffer, and what an optimizer does to them row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedsa_lora.exchange.arrays import TensorSpec
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.job import Job
from fedsa_lora.learning.settings import TrainSettings

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's of AdamW


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
        kind = next(iter(model.module.parameters()))
        self.values = torch.empty(clients, size, dtype=kind.dtype, device=kind.device)
        self.gradients = self.values.new_zeros(clients, sum(spec.size for spec in moving))
        self.work = self.values if dtype == self.values.dtype else self.values.to(dtype)
        # what makes autograd go through layers whose input needs no gradient of its own
        self.leaf = self.values.new_zeros(1, requires_grad=True)

    @torch.no_grad()
    def take(self, client: int, model: AdapterModel) -> None:
        """Copy a client's tensors out of the model."""
        for name, (begin, spec) in self._columns.items():
            self.values[client, begin : begin + spec.size] = model.parameter(name).reshape(-1)

    @torch.no_grad()
    def put(self, client: int, model: AdapterModel) -> None:
        """Copy a client's trained tensors into the model."""
        for name in self.trained:
            begin, spec = self._columns[name]
            row = self.values[client, begin : begin + spec.size]
            model.parameter(name).copy_(row.view(spec.shape))

    def begin(self) -> None:
        """Prepare a step: no gradients, and the values as they now are."""
        self.gradients.zero_()
        self.refresh()

    def refresh(self) -> None:
        """Round the values anew, where layers multiply in another type."""
        if self.work is not self.values:
            self.work.copy_(self.values)

    def working(self, name: str) -> list[torch.Tensor]:
        """A tensor of each client, as layers multiply it."""
        return self._views(self.work, name)

    def collected(self, name: str) -> list[torch.Tensor] | None:
        """The gradient of a tensor of each client; None of one that is not trained."""
        return self._views(self.gradients, name) if name in self.trained else None

    def client(self, client: int) -> RowOf:
        """One client's trained tensors, with their gradients."""
        return RowOf(self, client)

    def columns(self, name: str) -> slice:
        begin, spec = self._columns[name]
        return slice(begin, begin + spec.size)

    def _views(self, buffer: torch.Tensor, name: str) -> list[torch.Tensor]:
        shape = self._columns[name][1].shape
        return [row.view(shape) for row in buffer[:, self.columns(name)].unbind()]


@dataclass(frozen=True)
class RowOf:
    """A client's tensors by name, as an importance meter reads those of a model."""

    rows: Rows
    client: int

    def parameter(self, name: str) -> torch.Tensor:
        """A tensor, with its gradient if it is trained."""
        columns, shape = self.rows.columns(name), self.rows._columns[name][1].shape
        tensor = self.rows.values[self.client, columns].view(shape)
        if name in self.rows.trained:
            tensor.grad = self.rows.gradients[self.client, columns].view(shape)
        return tensor


class Optimizer:
    """AdamW (arXiv:1711.05101) or SGD with momentum, of the first n rows at once, each with settings of its
    own; all rows began together."""

    def __init__(self, rows: Rows, settings: Sequence[TrainSettings]) -> None:
        self.rows, self.adaptive = rows, settings[0].optimizer == "adamw"
        self.decay = self._column([one.weight_decay for one in settings])
        self.momentum = self._column([one.momentum for one in settings])
        self.clip = self._column([one.clip_norm or torch.inf for one in settings])
        self.clips = any(one.clip_norm is not None for one in settings)
        self.first = torch.zeros_like(rows.gradients)
        self.second = torch.zeros_like(rows.gradients) if self.adaptive else self.first
        self.steps = 0

    @torch.no_grad()
    def step(self, n: int, rates: Sequence[tuple[float, float]]) -> None:
        """One step of the first ``n`` rows; ``rates`` are those of the body and of the head of each."""
        self.steps += 1
        gradients = self.rows.gradients[:n]
        if self.clips:
            norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
            gradients.mul_((self.clip[:n] / (norms + 1e-6)).clamp_(max=1.0))
        body, head = zip(*rates, strict=True)
        for columns, of in ((slice(0, self.rows.body), body), (slice(self.rows.body, None), head)):
            if gradients[:, columns].shape[1]:
                move = self._adamw if self.adaptive else self._sgd
                move(n, columns, self._column(of))

    def _adamw(self, n: int, columns: slice, rate: torch.Tensor) -> None:
        values, gradient, first, second = self._parts(n, columns)
        values.mul_(1 - rate * self.decay[:n])
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        root = second.sqrt().div_((1 - BETAS[1] ** self.steps) ** 0.5).add_(EPS)
        values.addcmul_(first / root, rate / (BETAS[0] ** self.steps - 1))

    def _sgd(self, n: int, columns: slice, rate: torch.Tensor) -> None:
        values, gradient, first, _ = self._parts(n, columns)
        first.mul_(self.momentum[:n]).add_(gradient).addcmul_(values, self.decay[:n])
        values.addcmul_(first, -rate)

    def _parts(self, n: int, columns: slice) -> list[torch.Tensor]:
        rows = self.rows
        return [part[:n, columns] for part in (self._moving, rows.gradients, self.first, self.second)]

    @property
    def _moving(self) -> torch.Tensor:
        return self.rows.values[:, : self.rows.gradients.shape[1]]

    def _column(self, numbers: Sequence[float]) -> torch.Tensor:
        return self.rows.values.new_tensor(numbers).unsqueeze(1)


class Pull:
    """mu (w - anchor) of FedProx (arXiv:1812.06127), added to the gradients of each row's anchored
    tensors."""

    def __init__(self, rows: Rows, jobs: Sequence[Job]) -> None:
        self._rows = rows
        self._anchors = torch.zeros_like(rows.gradients)
        self._weights = torch.zeros_like(rows.gradients)
        for k, job in enumerate(jobs):
            for name in set(rows.trained) & job.anchor.keys():
                columns = rows.columns(name)
                anchor = torch.from_numpy(job.anchor[name].reshape(-1))
                self._anchors[k, columns] = anchor.to(self._anchors)
                self._weights[k, columns] = job.mu

    @torch.no_grad()
    def add(self, n: int) -> None:
        """To the first ``n`` rows."""
        gradients, values = self._rows.gradients, self._rows.values[:, : self._rows.gradients.shape[1]]
        gradients[:n].addcmul_(self._weights[:n], values[:n] - self._anchors[:n])
