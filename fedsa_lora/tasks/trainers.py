"""A task of Trainers of transformers: the model, the data and the loss are theirs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from fedsa_lora.tasks.named_functions import function_of, imported
from fedsa_lora.tasks.own_model import OwnModelTask
from fedsa_lora.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class TrainerTask(OwnModelTask):
    """Names a function as ``MODULE:FUNCTION``: ``trainer_function(client, clients)`` returns the Trainer of a
    client, with a model that starts alike for all.

    Examples are those of its data loaders, without the columns that its model does not take; the loss is its
    ``compute_loss``. The training itself is that of the run.
    """

    trainer_function: str

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
        loss: torch.Tensor = self._of_loss.compute_loss(model, dict(batch))
        return loss

    @cached_property
    def _of_loss(self) -> Any:
        return self._trainer(0)

    def _trainer(self, client: int | str) -> Any:
        return function_of(self.trainer_function)(client, self.partition.clients)
