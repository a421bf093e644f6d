"""A third-party federated model: its torch module, its methods for parameter exchange and its optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fedsa_lora.clip.adapter import ORIGINAL, TRAINED
from fedsa_lora.clip.tensors import GetTrainable, SetTrainable, TrainableTensors
from fedsa_lora.errors import ModelError
from fedsa_lora.suggest import listing

_EXCHANGED = {"get_parameters": GetTrainable, "set_parameters": SetTrainable}


def module_of(federated: Any, attribute: str | None) -> nn.Module:
    """The torch module of a federated model: the object itself, its ``attribute``, or the one attribute that
    is a module, of several the one called model. Raises ModelError where there is none, or several."""
    kind = type(federated).__name__
    if attribute is not None:
        found = getattr(federated, attribute, None)
        if not isinstance(found, nn.Module):
            raise ModelError(
                f"attribute={attribute}: {kind}.{attribute} is a {type(found).__name__}; expected a torch "
                "module"
            )
        return found
    if isinstance(federated, nn.Module):
        return federated
    modules = {name: value for name, value in _attributes(federated) if isinstance(value, nn.Module)}
    if not modules:
        raise ModelError(
            f"{kind} is not a torch module and has none among its attributes: give the object that holds "
            f"it, or "
            "name a property that returns it with attribute="
        )
    if len(modules) == 1:
        return next(iter(modules.values()))
    if "model" not in modules:
        raise ModelError(
            f"{kind} has several torch modules, {listing(modules)}: name the one that gets LoRA with "
            "attribute="
        )
    return modules["model"]


class Exchange:
    """The methods ``get_parameters`` and ``set_parameters`` of a federated model, replaced by those that
    exchange its trainable tensors alone; methods that it has not are not made."""

    def __init__(self, federated: Any, tensors: TrainableTensors) -> None:
        self.federated = federated
        self._own: dict[str, Any] = {}  # methods that stood in the object itself and not in its class
        self._replaced: list[str] = []
        for name, replacement in _EXCHANGED.items():
            original = getattr(federated, name, None)
            if not callable(original):
                continue
            if name in vars(federated):
                self._own[name] = original
            setattr(federated, name, replacement(original, tensors))
            self._replaced.append(name)

    def restore(self) -> None:
        """Put the methods back that were there before."""
        for name in self._replaced:
            if name in self._own:
                setattr(self.federated, name, self._own[name])
            else:
                delattr(self.federated, name)


def hand_to_optimizers(federated: Any, module: nn.Module) -> None:
    """Have the optimizers among the attributes of a federated model step the parameters that are trainable
    now: they were made of those from before. What is new, and in none of them, joins the first group of the
    first."""
    parameters = dict(module.named_parameters())
    own = {id(value) for value in parameters.values()}
    optimizers = [value for _, value in _attributes(federated) if isinstance(value, Optimizer)]
    optimizers = [each for each in optimizers if not own.isdisjoint(map(id, _held(each)))]
    if not optimizers:
        return
    copies = {
        id(value): parameters[name.replace(ORIGINAL, TRAINED)]
        for name, value in parameters.items()
        if ORIGINAL in name
    }
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            moved = [copies.get(id(value), value) for value in group["params"]]
            group["params"] = [value for value in moved if value.requires_grad]
    held = {id(value) for optimizer in optimizers for value in _held(optimizer)}
    new = [value for value in parameters.values() if value.requires_grad and id(value) not in held]
    optimizers[0].param_groups[0]["params"] += new
    for optimizer in optimizers:
        kept = {id(value) for value in _held(optimizer)}
        for value in [value for value in optimizer.state if id(value) not in kept]:
            del optimizer.state[value]


def _held(optimizer: Optimizer) -> list[torch.Tensor]:
    return [value for group in optimizer.param_groups for value in group["params"]]


def _attributes(federated: Any) -> list[tuple[str, Any]]:
    return list(getattr(federated, "__dict__", {}).items())
