"""A task of a user's own functions: one makes the model, another has the data of a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fedsa_lora.errors import DataError
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
        found = function_of(self.data_function)(client, self.partition.clients)
        if not isinstance(found, tuple):
            return found
        if any(isinstance(part, torch.Tensor | np.ndarray) for part in found):
            raise DataError(
                f"{self.data_function} returns a tuple of tensors: two tensors are not data sets; return "
                "TensorDataset(X, y), or a tuple of such a train set and a test set",
                sent="its data function returns tensors in place of data sets",
            )
        if len(found) != 2:
            raise DataError(
                f"{self.data_function} returns a tuple of {len(found)}: expected a train set, or a "
                "tuple of a train set and a test set",
                sent="its data function does not return a train set, or a train and a test set",
            )
        return found

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean loss of a batch, a scalar."""
        if self.loss_function:
            loss: torch.Tensor = function_of(self.loss_function)(model, batch)
            return loss
        return cross_entropy(outputs_of(model, batch), batch["labels"])
