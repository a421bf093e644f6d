"""A task of Trainers of transformers: the model, the data, the loss and the metrics are theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import EvalPrediction, Trainer

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.measure import CLASSES, LARGEST, Measure
from fedsa_lora.tasks.datasets_of_torch import Source, named, outputs_of
from fedsa_lora.tasks.named_functions import function_of, imported, name_of
from fedsa_lora.tasks.own_model import OwnModelTask
from fedsa_lora.tasks.task import Batch

_KNOWN = {measure.name: measure for measure in CLASSES}


@dataclass(frozen=True, kw_only=True)
class TrainerTask(OwnModelTask):
    """Names a function as ``MODULE:FUNCTION``: ``trainer_function(client, clients)`` returns the Trainer of a
    client, with a model that starts alike for all.

    Examples are those of its data loaders, without the columns that its model does not take; the loss is its
    ``compute_loss``. What is ``measured`` its ``compute_metrics`` returns, unless there is an
    ``evaluate_function``. The training itself is that of the run.
    """

    trainer_function: str

    measures_itself: ClassVar[bool] = True

    def own_model(self) -> torch.nn.Module:
        model: torch.nn.Module = self._trainer(0).model
        return model

    def model_code(self) -> tuple[str, str]:
        return imported(self.trainer_function, f"(0, {self.partition.clients}).model")

    def own_data(self, client: int | str) -> Any:
        trainer = self._trainer(client)
        train = trainer.get_train_dataloader()
        return train if trainer.eval_dataset is None else (train, trainer.get_eval_dataloader())

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean loss of a batch, a scalar."""
        loss: torch.Tensor = self._first.compute_loss(model, dict(batch))
        return loss

    def evaluate(self, predictions: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """The numbers that ``measures`` declares."""
        if self.evaluate_function or not self.measured:
            return super().evaluate(predictions, labels)
        return _metrics(self._first, predictions, labels)

    @cached_property
    def _first(self) -> Any:
        """The Trainer whose functions are those of all."""
        return self._trainer(0)

    def _trainer(self, client: int | str) -> Any:
        return made_by(function_of(self.trainer_function), client, self.partition.clients)


def made_by(function: Callable[..., Any], client: int | str, clients: int) -> Any:
    """The Trainer of a client. Raises ConfigError where the function returns none."""
    made = function(client, clients)
    if not isinstance(made, Trainer):
        raise ConfigError(
            f"the function {name_of(function)} returns {type(made).__name__}; expected a Trainer",
            sent="its trainer function does not return a Trainer",
        )
    return made


def measures_of(
    trainer: Any, declared: tuple[Measure, ...], evaluates: bool
) -> tuple[tuple[Measure, ...], str]:
    """The measures of a run of Trainers, and the reason why their ``compute_metrics`` is not called, where
    there is one: those that are ``declared``, or else what it returns. ``evaluates``: a function of the
    user's measures instead.

    Raises ConfigError for declared measures that nothing returns, and for a ``compute_metrics`` that cannot
    be called on the first examples.
    """
    if trainer.compute_metrics is None:
        reason, computes = "", False
    else:
        reason = "evaluate measures in its place" if evaluates else _why_not_computed(trainer)
        computes = not reason
    if declared and not computes and not evaluates:
        raise ConfigError(
            "measures: nothing returns them; expected evaluate as well, or a Trainer with compute_metrics"
            f"{reason and f' ({reason})'}"
        )
    return (declared or _computed(trainer)) if computes else declared, reason


def _why_not_computed(trainer: Any) -> str:
    """The reason why a Trainer's ``compute_metrics`` cannot measure a run; empty where it can."""
    if trainer.args.batch_eval_metrics or trainer.args.include_for_metrics:
        return "a run hands it the outputs and labels of all examples, no batches, inputs or losses"
    if (_first_batch(trainer)[1] < 0).any():
        return "a run hands it one whole number for each example as labels, and the data have others"
    return ""


def _computed(trainer: Any) -> tuple[Measure, ...]:
    """Measures that ``compute_metrics`` returns for the first evaluation batch. The first is the one that the
    arguments choose the best model by."""
    batch, labels = _first_batch(trainer)
    trainer.model.eval()
    moved = {name: value.to(trainer.model.device) for name, value in batch.items()}
    with torch.no_grad():
        outputs = outputs_of(trainer.model, moved)
    try:
        found = _metrics(trainer, outputs.float().cpu().numpy(), labels)
    except Exception as error:  # of whatever kind a user's function raises
        raise ConfigError(
            f"compute_metrics of the Trainer raises {type(error).__name__} for its first {len(labels)} "
            f"evaluation examples: {error}; where it needs others, declare by `measures` what it returns"
        ) from error
    numbers = {name: float(value) for name, value in found.items() if np.ndim(value) == 0}
    best = str(trainer.args.metric_for_best_model or "").removeprefix("eval_")
    names = sorted(numbers, key=lambda name: name != best)
    return tuple(_measure(name, numbers[name], trainer.args, name == best) for name in names)


def _measure(name: str, value: float, args: Any, is_best: bool) -> Measure:
    """A measure by its name: one of classes where the value can be of it, else any number, which is better
    the higher it is, but for losses, as transformers has it."""
    known = _KNOWN.get(name)
    if known is not None and known.range[0] <= value <= known.range[1]:
        return known
    higher = bool(args.greater_is_better) if is_best else not name.endswith("loss")
    return Measure(name, (-LARGEST, LARGEST), higher)


def _first_batch(trainer: Any) -> tuple[Batch, NDArray[np.int64]]:
    """The first examples that a Trainer evaluates, in the order of its data set, and the class of each; -1
    where it has none."""
    loader = trainer.get_train_dataloader() if trainer.eval_dataset is None else trainer.get_eval_dataloader()
    source = Source.of(loader)
    count = min(len(source), trainer.args.per_device_eval_batch_size)
    items: Sequence[Any] = [source.items[row] for row in range(count)]
    return named(source.collate([*items])), Source(items).labels()


def _metrics(trainer: Any, predictions: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Numbers that a Trainer's ``compute_metrics`` returns for outputs (n, ...) and labels (n,)."""
    handed: Any = predictions
    if (prepare := trainer.preprocess_logits_for_metrics) is not None:
        handed = prepare(torch.from_numpy(predictions), torch.from_numpy(labels)).numpy()
    return dict(trainer.compute_metrics(EvalPrediction(predictions=handed, label_ids=labels)))
