"""The trainable tensors of a module, and the methods of a foreign model by which they travel."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsa_lora.errors import LayoutError
from fedsa_lora.suggest import listing


class TrainableTensors:
    """Tensors of a module by their names in it, read and written in place. They are looked up at each use,
    so a deep copy of a model reads and writes its own."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        self.module, self.names = module, tuple(names)

    def read(self) -> dict[str, torch.Tensor]:
        """Copies on the CPU, by name."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self._parameters().items()}

    @torch.no_grad()
    def write(self, values: Mapping[str, Any]) -> None:
        """Overwrite every one of the tensors by tensors or arrays. Raises LayoutError, and writes nothing,
        unless their names and shapes are exactly those."""
        parameters = self._parameters()
        if other := sorted(parameters.keys() ^ {str(name) for name in values}):
            raise LayoutError(
                f"expected the {len(parameters)} trainable tensors by their names; {listing(other, 3)} "
                "on one side only"
            )
        # NumPy's arrays are copied, as those that come off a wire may not be writable, which torch warns of
        copied = {n: np.array(v) if isinstance(v, np.ndarray) else v for n, v in values.items()}
        tensors = {name: torch.as_tensor(copied[name]) for name in parameters}
        for name, parameter in parameters.items():
            if tensors[name].shape != parameter.shape:
                raise LayoutError(
                    f"{name} has the shape {tuple(tensors[name].shape)}; expected {tuple(parameter.shape)}"
                )
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])

    def _parameters(self) -> dict[str, nn.Parameter]:
        parameters = dict(self.module.named_parameters())
        return {name: parameters[name] for name in self.names}


class _Method:
    """A method of one object in the place of ``original``, with its signature. An object rather than a
    function: a deep copy of the object it belongs to holds a copy of it, with its own tensors."""

    def __init__(self, original: Any, tensors: TrainableTensors) -> None:
        functools.update_wrapper(cast(Any, self), original)
        self.tensors = tensors

    @property
    def original(self) -> Any:
        return self.__dict__["__wrapped__"]


class GetTrainable(_Method):
    """A ``get_parameters`` that returns the trainable tensors in the form of the original:
    a mapping, a list or a tuple, of arrays or of torch's tensors. The original is called once, to see it."""

    def __init__(self, original: Any, tensors: TrainableTensors) -> None:
        super().__init__(original, tensors)
        self.container: type[Any] | None = None
        self.holds_tensors = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.container is None:
            self._look(self.original(*args, **kwargs))
        else:
            inspect.signature(self.original).bind(*args, **kwargs)  # refuses what the original would
        values: dict[str, Any] = dict(self.tensors.read())
        if not self.holds_tensors:
            values = {name: as_array(value) for name, value in values.items()}
        if self.container is dict:
            return values
        return list(values.values()) if self.container is list else tuple(values.values())

    def _look(self, example: Any) -> None:
        if not isinstance(example, Mapping | list | tuple):
            raise LayoutError(
                f"get_parameters returns a {type(example).__name__}; expected a mapping, a list or a tuple "
                "of arrays or tensors: have it return one, or set save_only_trainable=False"
            )
        found = list(example.values()) if isinstance(example, Mapping) else list(example)
        if not all(isinstance(value, torch.Tensor | np.ndarray) for value in found):
            raise LayoutError(
                "get_parameters returns values that are neither arrays nor tensors: have it return those, or "
                "set save_only_trainable=False"
            )
        self.holds_tensors = bool(found) and isinstance(found[0], torch.Tensor)
        self.container = dict
        if not isinstance(example, Mapping):
            self.container = list if isinstance(example, list) else tuple


class SetTrainable(_Method):
    """A ``set_parameters`` that takes the trainable tensors instead of all: a mapping by their names, or
    a sequence in their order. They are the first argument, as in the original."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(self.original).bind(*args, **kwargs)
        given = next(iter(bound.arguments.values()), None)
        if isinstance(given, Mapping):
            self.tensors.write(given)
            return
        if not isinstance(given, Sequence) or len(given) != len(self.tensors.names):
            count = len(given) if isinstance(given, Sequence) else type(given).__name__
            raise LayoutError(
                f"set_parameters was given {count}; expected {len(self.tensors.names)} trainable tensors in "
                "the order in which get_parameters returns them"
            )
        self.tensors.write(dict(zip(self.tensors.names, given, strict=True)))


def as_array(value: torch.Tensor) -> NDArray[Any]:
    """A NumPy array of a tensor on the CPU. NumPy has no bfloat16: its values are exact in float32."""
    found: NDArray[Any] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return found
