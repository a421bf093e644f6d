"""The local loop: batches, precision, optimizer, report. Knows nothing of a federation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fedsa_lora.errors import TrainingError
from fedsa_lora.exchange.arrays import NamedArrays
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.dropout import Sites
from fedsa_lora.learning.masking import find_sites, masked
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.tasks.task import Batch, Examples, Task

BUCKET_BATCHES = 8  # batches that are sorted by length together: little padding, still random


@dataclass(frozen=True)
class TrainReport:
    """Report of a fit: mean loss over examples, counts, and seconds of wall time."""

    loss: float = 0.0
    steps: int = 0
    examples: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: TrainReport) -> TrainReport:
        """One training after another, as one."""
        examples = self.examples + other.examples
        return TrainReport(
            loss=(self.loss * self.examples + other.loss * other.examples) / max(1, examples),
            steps=self.steps + other.steps,
            examples=examples,
            tokens=self.tokens + other.tokens,
            padded_tokens=self.padded_tokens + other.padded_tokens,
            seconds=self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Objective:
    """Objective of a step: the task's loss on a batch."""

    model: AdapterModel
    task: Task
    examples: Examples
    settings: TrainSettings

    def loss(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """The mean loss over the examples at ``indices``, a scalar."""
        with self.autocast():
            return self.task.loss(self.model.module, self.batch(indices))

    def autocast(self) -> AbstractContextManager[object]:
        return autocast(self.settings, self.model.device)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        return to_device(self.task.collate(self.examples, indices), self.model.device)

    @contextmanager
    def at(self, indices: NDArray[np.int64]) -> Iterator[torch.Tensor]:
        """The loss, with the model as it must be until its gradient is taken."""
        yield self.loss(indices)


def epoch_batches(
    lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Every index exactly once, in batches of similar length, in random order.

    A permutation is cut into buckets of ``BUCKET_BATCHES`` batches; each bucket is sorted by
    length, cut into batches, and the batches are shuffled.
    """
    order = rng.permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), batch_size * BUCKET_BATCHES):
        bucket = order[start : start + batch_size * BUCKET_BATCHES]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def round_batches(
    lengths: NDArray[np.int64], settings: TrainSettings, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """The batches of one round, epoch after epoch until steps or epochs are reached. Raises TrainingError
    where there are no examples."""
    if not len(lengths):
        raise TrainingError("there is no example to train on: this client needs rows beside its test part")
    batches: list[NDArray[np.int64]] = []
    epochs = 0
    while len(batches) < settings.steps if settings.steps is not None else epochs < (settings.epochs or 1):
        batches += epoch_batches(lengths, settings.batch_size, rng)
        epochs += 1
    return batches[: settings.steps]


def train(
    model: AdapterModel,
    task: Task,
    examples: Examples,
    settings: TrainSettings,
    *,
    trained: frozenset[str],
    batches: Sequence[NDArray[np.int64]],
    torch_seed: int,
    objective: Callable[[AdapterModel, Task, Examples, TrainSettings], Objective] = Objective,
    proximal: tuple[float, NamedArrays] | None = None,
    observe: Callable[[AdapterModel], None] | None = None,
    beside: Sequence[nn.Parameter] = (),
) -> TrainReport:
    """Train the named tensors in place, from the state the model is in, and what there is ``beside`` them:
    a step for each of the ``batches``, which are indices of the examples.

    ``proximal`` = (mu, reference) adds mu/2 ||w - reference||^2 over the reference's tensors
    (FedProx, arXiv:1812.06127). ``observe`` sees the model with the gradients of the task's loss, neither
    scaled nor clipped, at every step but the first: while B = 0 the gradient of A is 0.
    ``objective`` is what is made smaller in place of the task's loss.
    Raises TrainingError at the first loss that is not finite.
    """
    model.set_trainable(trained)
    model.set_mode(training=True)
    optimizer = _optimizer(model, trained, settings, beside)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(settings, len(batches)))
    scaler = torch.amp.GradScaler(model.device.type, enabled=settings.precision == "fp16")
    anchor = _anchor(model, proximal[1]) if proximal else {}
    minimised = objective(model, task, examples, settings)
    sites = dropout_sites(minimised, batches[0])
    _seed(torch_seed, model.device)  # for dropout that no mask reaches
    started, total = time.perf_counter(), 0.0
    with masked(model.module, sites, torch_seed):
        for step, indices in enumerate(batches):
            with minimised.at(indices) as loss:
                value = finite(loss.item(), step, len(batches), settings)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(scaler.scale(loss))
            scaler.unscale_(optimizer)
            if observe is not None and step > 0:
                observe(model)
            if proximal:
                _pull(model, anchor, proximal[0])
            if settings.clip_norm is not None:
                clip_grad_norm_([*map(model.parameter, sorted(trained)), *beside], settings.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            total += value * len(indices)
    return _report(examples, batches, total, time.perf_counter() - started)


def _seed(seed: int, device: torch.device) -> None:
    """Seeds the generators that training draws from. ``torch.manual_seed`` does so, and formats a stack trace
    for each kind of accelerator that it has not found, which takes as long as a step of a small model."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.manual_seed(seed)


@torch.no_grad()
def predict(
    model: AdapterModel, task: Task, examples: Examples, settings: TrainSettings
) -> NDArray[np.float32]:
    """The task's predictions (n, ...), of classes logits, in the order of the examples; batches are formed
    by length."""
    model.set_mode(training=False)
    order = np.argsort(examples.lengths, kind="stable")
    parts = []
    for indices in _chunks(order, settings.eval_batch_size):
        batch = to_device(task.collate(examples, indices), model.device)
        with autocast(settings, model.device):
            parts.append(task.predict(model.module, batch).float().cpu().numpy())
    by_length = np.concatenate(parts)
    result = np.empty_like(by_length)
    result[order] = by_length
    return result


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _chunks(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def dropout_sites(objective: Objective, indices: NDArray[np.int64]) -> Sites:
    """The dropout sites of the model, found once in a pass over the first of the examples."""
    model = objective.model
    if model.device.type != "cpu":
        return Sites()
    if model.sites is None:
        model.sites = find_sites(model.module, lambda: objective.loss(indices[:1]))
    return model.sites


def _optimizer(
    model: AdapterModel, trained: frozenset[str], settings: TrainSettings, beside: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    specs = [spec for spec in model.layout if spec.name in trained]
    groups = [
        {
            "params": [*(model.parameter(s.name) for s in specs if s.role != "head"), *beside],
            "lr": settings.lr,
        },
        {
            "params": [model.parameter(s.name) for s in specs if s.role == "head"],
            "lr": settings.lr if settings.head_lr is None else settings.head_lr,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)


def schedule(settings: TrainSettings, steps: int) -> Callable[[int], float]:
    """The factor of the learning rate at each of ``steps``, of which the first is 0."""
    warmup = round(settings.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, steps - warmup)
        if settings.schedule == "linear":
            return 1.0 - progress
        return 0.5 * (1 + math.cos(math.pi * progress)) if settings.schedule == "cosine" else 1.0

    return factor


def autocast(settings: TrainSettings, device: torch.device) -> AbstractContextManager[object]:
    """Multiplication in the precision of the settings, within it."""
    if settings.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=settings.dtype)


def finite(loss: float, step: int, steps: int, settings: TrainSettings) -> float:
    """The loss of a step, of which the first is 0. Raises TrainingError where it is not finite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss became {loss} at step {step + 1} of {steps}: lower train.lr (now {settings.lr:g}), "
            "set train.clip_norm, or use train.precision=fp32"
        )
    return loss


def _pull(model: AdapterModel, anchor: Mapping[str, torch.Tensor], mu: float) -> None:
    for name, reference in anchor.items():
        parameter = model.parameter(name)
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - reference, alpha=mu)


def _anchor(model: AdapterModel, reference: NamedArrays) -> Mapping[str, torch.Tensor]:
    return {name: torch.from_numpy(value.copy()).to(model.device) for name, value in reference.items()}


def _report(
    examples: Examples, batches: Sequence[NDArray[np.int64]], total_loss: float, seconds: float
) -> TrainReport:
    seen = sum(len(batch) for batch in batches)
    tokens = int(sum(examples.lengths[batch].sum() for batch in batches))
    padded = tokens
    if not examples.packed:
        padded = int(sum(examples.lengths[batch].max() * len(batch) for batch in batches))
    return TrainReport(
        loss=total_loss / max(1, seen),
        steps=len(batches),
        examples=seen,
        tokens=tokens,
        padded_tokens=padded,
        seconds=seconds,
    )
