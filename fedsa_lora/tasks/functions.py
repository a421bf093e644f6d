"""A task of a user's own functions: one makes the model, another has the data of a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fedsa_lora.tasks.datasets_of_torch import outputs_of
from fedsa_lora.tasks.named_functions import function_of, imported
from fedsa_lora.tasks.own_model import OwnModelTask
from fedsa_lora.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class FunctionTask(OwnModelTask):
    """Names functions as ``MODULE:FUNCTION``.

    ``model_function()`` returns the model. ``data_function(client, clients)`` returns a client's train set
    and test set, or the former alone; a client is its number, or the name of a node that has one.
    ``loss_function(model, batch)`` is the mean loss of a batch; without it cross-entropy.
    """

    model_function: str
    data_function: str
    loss_function: str = ""

    def own_model(self) -> torch.nn.Module:
        model: torch.nn.Module = function_of(self.model_function)()
        return model

    def model_code(self) -> tuple[str, str]:
        return imported(self.model_function, "()")

    def own_data(self, client: int | str) -> Any:
        return function_of(self.data_function)(client, self.partition.clients)

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean loss of a batch, a scalar."""
        if self.loss_function:
            loss: torch.Tensor = function_of(self.loss_function)(model, batch)
            return loss
        return cross_entropy(outputs_of(model, batch), batch["labels"])
