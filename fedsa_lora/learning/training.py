"""The local loop: batches, precision, optimizer, report. Knows nothing of a federation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fedsa_lora.errors import TrainingError
from fedsa_lora.exchange.arrays import NamedArrays, TensorSpec
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.dropout import Sites
from fedsa_lora.learning.lengths import WORTH, chunks, of_similar_length
from fedsa_lora.learning.masking import find_sites, masked
from fedsa_lora.learning.moving import to_device
from fedsa_lora.learning.report import TrainReport
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.tasks.task import Batch, Counting, Examples, Task

BUCKET_BATCHES = 8  # batches that are sorted by length together: little padding, still random


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

    def at(self, indices: NDArray[np.int64]) -> Iterator[torch.Tensor]:
        """The loss of a step over ``indices`` as the sum of the losses of its passes. The gradient of each is
        taken before the next is computed; the model is as it must be for that."""
        for share, part in self.parts(indices):
            yield share * self.loss(part)

    def parts(self, indices: NDArray[np.int64]) -> list[tuple[float, NDArray[np.int64]]]:
        """The passes of a step over ``indices``, each with its share of the terms that the loss of the step
        is the mean of: the mean loss is the sum of the losses of the passes, each times its share. A pass
        without a term, whose loss is no number, is left out."""
        chosen = passes(indices, self.settings)
        terms = [self.terms(part) for part in chosen] if len(chosen) > 1 else []
        whole = sum(terms)
        if not whole:
            return [(1.0, indices)]
        return [(count / whole, part) for count, part in zip(terms, chosen, strict=True) if count]

    def terms(self, indices: NDArray[np.int64]) -> int:
        """The number of terms that ``loss`` is the mean of: examples, unless the task counts others."""
        if isinstance(self.task, Counting):
            return self.task.terms(self.examples, indices)
        return len(indices)


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
    """The batches of one round, one for each step, epoch after epoch until steps or epochs are reached.
    Raises TrainingError where there are no examples."""
    if not len(lengths):
        raise TrainingError("there is no example to train on: this client needs rows besides its test part")
    batches: list[NDArray[np.int64]] = []
    epochs = 0
    size = settings.at_once * settings.accumulate
    while len(batches) < settings.steps if settings.steps is not None else epochs < (settings.epochs or 1):
        batches += epoch_batches(lengths, size, rng)
        epochs += 1
    return batches[: settings.steps]


def passes(indices: NDArray[np.int64], settings: TrainSettings) -> list[NDArray[np.int64]]:
    """The examples of a step in the passes that it is computed in."""
    if settings.accumulate == 1:
        return [indices]
    return [*chunks(indices, settings.at_once)]


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
    specs = [spec for spec in model.layout if spec.name in trained]
    optimizer = make_optimizer(specs, model.parameter, settings, beside)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(settings, len(batches)))
    scaler = torch.amp.GradScaler(model.device.type, enabled=settings.precision == "fp16")
    anchor = _anchor(model, proximal[1]) if proximal else {}
    minimised = objective(model, task, examples, settings)
    sites = dropout_sites(minimised, batches[0])
    seed_generators(torch_seed, model.device)  # for dropout that no mask reaches
    started, total = time.perf_counter(), 0.0
    with masked(model.module, sites, torch_seed):
        for step, indices in enumerate(batches):
            optimizer.zero_grad(set_to_none=True)
            for loss in minimised.at(indices):
                total += finite(loss.item(), step, len(batches), settings) * len(indices)
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
    computed = [part for batch in batches for part in passes(batch, settings)]
    return TrainReport.of(examples, batches, computed, total, time.perf_counter() - started)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds the generators that training draws from. ``torch.manual_seed`` does so, and formats a stack trace
    for each kind of accelerator that it has not found, which takes as long as a step of a small model."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.manual_seed(seed)


def predict(
    model: AdapterModel, task: Task, examples: Examples, settings: TrainSettings
) -> NDArray[np.float32]:
    """The task's predictions (n, ...), of classes logits, in the order of the examples."""
    return in_order(model, task, examples, settings, task.predict)


def in_order(
    model: AdapterModel,
    task: Task,
    examples: Examples,
    settings: TrainSettings,
    of: Callable[[nn.Module, Batch], torch.Tensor],
) -> NDArray[np.float32]:
    """The results of ``of`` for the model and its batches, (n, ...) in the order of the examples."""
    found = list(by_length(model, task, examples, settings, of))
    together = np.concatenate([results for _, results in found])
    result = np.empty_like(together)
    result[np.concatenate([indices for indices, _ in found])] = together
    return result


@torch.no_grad()
def by_length(
    model: AdapterModel,
    task: Task,
    examples: Examples,
    settings: TrainSettings,
    of: Callable[[nn.Module, Batch], torch.Tensor],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The examples of each batch, which are formed by length, and the results of ``of`` for the model in eval
    mode and that batch."""
    model.set_mode(training=False)
    worth = WORTH if model.device.type == "cpu" else np.inf
    for indices in of_similar_length(examples.lengths, settings.eval_batch_size, worth):
        batch = to_device(task.collate(examples, indices), model.device)
        with autocast(settings, model.device):
            results = of(model.module, batch)
        yield indices, results.float().cpu().numpy()


def dropout_sites(objective: Objective, indices: NDArray[np.int64]) -> Sites:
    """The dropout sites of the model, found once in a pass over the first of the examples."""
    model = objective.model
    if model.device.type != "cpu":
        return Sites()
    if model.sites is None:
        model.sites = find_sites(model.module, lambda: objective.loss(indices[:1]))
    return model.sites


def make_optimizer(
    specs: Sequence[TensorSpec],
    parameter: Callable[[str], nn.Parameter],
    settings: TrainSettings,
    beside: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """An optimizer of the trained tensors, in the order of their layout, and of what there is beside them."""
    groups = [
        {
            "params": [*(parameter(s.name) for s in specs if s.role != "head"), *beside],
            "lr": settings.lr,
        },
        {
            "params": [parameter(s.name) for s in specs if s.role == "head"],
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
