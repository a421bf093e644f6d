"""The LoRA tensors of one client in one part of a model, with their optimizer, lent to a resident model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsa_lora.errors import TrainingError, WireError
from fedsa_lora.exchange.arrays import Arrays, NamedArrays
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.job import as_array
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import make_optimizer, schedule

TINY = 1e-6  # added to the norm that is divided by, as torch's clip_grad_norm_ does
_VALUE, _GRADIENT, _MOMENT = "value/", "gradient/", "moment/"


class Trained:
    """Tensors of a client that stand in a ``model`` only while it computes for that client.

    ``values`` are all tensors of the model's layout, ``names`` those that are trained in a round of
    ``steps``, and ``elsewhere`` those that are trained in the other side's part. Gradients add up until
    ``step``.
    """

    def __init__(
        self,
        model: AdapterModel,
        values: NamedArrays,
        names: frozenset[str],
        settings: TrainSettings,
        steps: int,
        elsewhere: Collection[str] = (),
    ) -> None:
        model.layout.check(values)
        self.model, self.names, self.settings = model, names, settings
        self._sorted, self._elsewhere = sorted(names), sorted(elsewhere)
        self._own = {
            spec.name: nn.Parameter(_tensor(values[spec.name], model.device), spec.name in names)
            for spec in model.layout
        }
        specs = [spec for spec in model.layout if spec.name in names]
        self._optimizer = make_optimizer(specs, self._own.__getitem__, settings) if specs else None
        self._factor = schedule(settings, steps)
        self._rates = [group["lr"] for group in self._optimizer.param_groups] if self._optimizer else []
        self.steps = 0

    @contextmanager
    def lent(self, *, training: bool) -> Iterator[None]:
        """The model with these tensors in it, and gradients that are added to theirs."""
        self.model.set_mode(training=training)
        parameters = {name: self.model.parameter(name) for name in self._own}
        held = {name: parameter.data for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            parameter.data, parameter.grad = self._own[name].data, self._own[name].grad
            parameter.requires_grad_(training and name in self.names)
        try:
            yield
        finally:
            for name, parameter in parameters.items():
                self._own[name].grad, parameter.grad = parameter.grad, None
                parameter.data = held[name]

    def norms(self) -> NDArray[np.float32] | None:
        """The L2 norm of the gradient of each trained tensor, sorted by name, 0 where it has none; None where
        gradients are not clipped."""
        if self.settings.clip_norm is None:
            return None
        gradients = [self._own[name].grad for name in self._sorted]
        found = [0.0 if grad is None else float(torch.linalg.vector_norm(grad)) for grad in gradients]
        return np.array(found, np.float32)

    def step(self, norms: NDArray[np.float32] | None) -> None:
        """One step of the optimizer, of gradients that are clipped by their norms and those of the other
        side, as ``clip_grad_norm_`` clips those of a whole model. Raises WireError for ``norms`` that are not
        one for each tensor there."""
        if self.settings.clip_norm is not None:
            if norms is None or len(norms) != len(self._elsewhere):
                raise WireError(f"expected the norms of {len(self._elsewhere)} gradients of the other part")
            self._clip(norms, self.settings.clip_norm)
        if self._optimizer is not None:
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * self._factor(self.steps)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def _clip(self, norms: NDArray[np.float32], most: float) -> None:
        known = dict(zip(self._elsewhere, norms, strict=True))
        known |= zip(self._sorted, self.norms(), strict=True)  # type: ignore[arg-type]
        each = torch.tensor([known[name] for name in sorted(known)], dtype=torch.float32)
        factor = torch.clamp(most / (torch.linalg.vector_norm(each) + TINY), max=1.0)
        for name in self.names:
            grad = self._own[name].grad
            if grad is not None:
                grad.mul_(factor.to(grad.device))

    def values(self) -> Arrays:
        """Copies of all tensors. Raises TrainingError where one is not finite."""
        found = {name: as_array(parameter) for name, parameter in self._own.items()}
        if bad := sorted(name for name, array in found.items() if not np.isfinite(array).all()):
            raise TrainingError(f"training made these tensors NaN or infinite: {bad}; lower train.lr")
        return found

    def state(self) -> Arrays:
        """All that ``restore`` resumes from: values, gradients, and the optimizer's moments."""
        state = {_VALUE + name: as_array(parameter) for name, parameter in self._own.items()}
        for name in self.names:
            parameter = self._own[name]
            if parameter.grad is not None:
                state[_GRADIENT + name] = as_array(parameter.grad)
            for key, moment in (self._optimizer.state[parameter] if self._optimizer else {}).items():
                if moment is not None:
                    state[f"{_MOMENT}{key}/{name}"] = as_array(moment)
        return state

    @torch.no_grad()
    def restore(self, state: NamedArrays, steps: int) -> None:
        """Resume after so many steps."""
        self.steps = steps
        for name, parameter in self._own.items():
            parameter.copy_(_tensor(state[_VALUE + name], parameter.device))
            if (grad := state.get(_GRADIENT + name)) is not None:
                parameter.grad = _tensor(grad, parameter.device)
        for key, array in state.items():
            if self._optimizer is not None and key.startswith(_MOMENT):
                kind, name = key.removeprefix(_MOMENT).split("/", 1)
                device = "cpu" if kind == "step" else self._own[name].device
                self._optimizer.state[self._own[name]][kind] = _tensor(array, torch.device(device))


def _tensor(array: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32)).to(device)
