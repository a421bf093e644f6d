"""Steps of the rows of a block: each client's row is drawn to its anchor, clipped and moved by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedsa_lora.learning.cohort.rows import Rows
from fedsa_lora.learning.job import Job
from fedsa_lora.learning.training import schedule

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's of AdamW


class Optimizer:
    """AdamW (arXiv:1711.05101) or SGD with momentum, of the first n rows at once, each with the settings and
    the schedule of a job; all rows begin together."""

    def __init__(self, rows: Rows, jobs: Sequence[Job]) -> None:
        settings = [job.settings for job in jobs]
        self.rows, self.adaptive = rows, settings[0].optimizer == "adamw"
        self.factors = [schedule(job.settings, len(job.batches)) for job in jobs]
        self.body = self._column([one.lr for one in settings])
        self.head = self._column([one.lr if one.head_lr is None else one.head_lr for one in settings])
        self.decay = self._column([one.weight_decay for one in settings])
        self.momentum = self._column([one.momentum for one in settings])
        self.clip = self._column([one.clip_norm or torch.inf for one in settings])
        self.clips = any(one.clip_norm is not None for one in settings)
        self.first = torch.zeros_like(rows.gradients)
        self.second = torch.zeros_like(rows.gradients) if self.adaptive else self.first
        self.steps = 0

    @torch.no_grad()
    def step(self, n: int) -> None:
        """One step of the first ``n`` rows, after clipping each by itself."""
        gradients = self.rows.gradients[:n]
        if self.clips:
            norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
            gradients.mul_((self.clip[:n] / (norms + 1e-6)).clamp_(max=1.0))
        factor = self._column([factor(self.steps) for factor in self.factors[:n]])
        self.steps += 1
        for columns, rate in (
            (slice(0, self.rows.body), self.body),
            (slice(self.rows.body, None), self.head),
        ):
            if gradients[:, columns].shape[1]:
                move = self._adamw if self.adaptive else self._sgd
                move(n, columns, rate[:n] * factor)

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
        return [part[:n, columns] for part in (rows.moving, rows.gradients, self.first, self.second)]

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
        apart = self._rows.moving[:n] - self._anchors[:n]
        self._rows.gradients[:n].addcmul_(self._weights[:n], apart)
