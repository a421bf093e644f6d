"""A mixture of two LoRA experts, a client's own and the mean of the other clients', with a local gate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedsa_lora.exchange.arrays import Layout, NamedArrays
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.job import Job
from fedsa_lora.learning.local_round import LocalRound
from fedsa_lora.learning.personalisation import Personalisation, Training

if TYPE_CHECKING:
    from fedsa_lora.settings import RunConfig


@dataclass(frozen=True)
class Experts(Personalisation):
    """FedALT (arXiv:2503.11880), after FedDPA (arXiv:2403.19211):
    h = W0 x + g(x) s B A x + (1 - g(x)) s B_row A_row x in every layer.

    A (r, d_in) and B (d_out, r) are the client's own expert, trained and shared, and no broadcast overwrites
    them. A_row and B_row are the frozen leave-one-out mean of experts. g(x) = sigmoid(w x + b), one
    number for each token, is trained and stays with the client; it starts at 1/2.
    """

    beside = True
    mixes = True

    def clashes(self, run: RunConfig) -> Iterator[str]:
        """A client takes its part off the common values, which must be the mean of what clients shared."""
        yield from super().clashes(run)
        if not run.split.shares_both:
            yield "personalisation: Experts mixes whole adapters, A with B; expected split=share_ab"
        if run.clusters is not None or run.federation.weights != "examples":
            yield (
                "personalisation: Experts subtracts a client's own part from the mean by its examples; "
                "expected "
                "clusters=none and federation.weights=examples"
            )
        if not run.strategy.can("averages") and not run.strategy.needs_factors:
            yield (
                f"personalisation: Experts needs the mean of what clients shared, and {run.strategy.name} "
                f"does not return it; expected strategy=fedavg or fedprox"
            )
        for key, codec, plain in (
            ("codec", run.codec, "dense"),
            ("downlink", run.downlink, "whole or dense"),
        ):
            if codec is not None and not codec.lossless:
                yield (
                    f"{key}: Experts subtracts a client's own part from the mean, which {codec.name!r} "
                    f"changes; "
                    f"expected {key}={plain}"
                )

    def check(self, model: AdapterModel) -> None:
        model.factors()

    def fit(self, local: LocalRound, personal: NamedArrays) -> Training:
        outcome = yield local.plain(extension=partial(mixed, personal=personal, rest=local.others))
        own = {name: outcome.values[name] for name in expert(local.layout)}
        return outcome, own | outcome.extension

    def own(self, local: LocalRound, personal: NamedArrays) -> Job:
        if not personal:
            return local.still()
        return local.still(extension=partial(mixed, personal=personal, rest=local.others))


def expert(layout: Layout) -> list[str]:
    """The tensors of an expert: every A and B."""
    return [spec.name for spec in layout if spec.role in ("A", "B")]


@contextmanager
def mixed(model: AdapterModel, personal: NamedArrays, rest: NamedArrays) -> Iterator[dict[str, nn.Parameter]]:
    """Within it, and whatever happens only within it, the model computes the mixture.

    The own expert is that of ``personal``, or the one in the model, and stands in the model, also
    afterwards. Yields the gates by name, with the values of ``personal`` or zeros.
    """
    standing, names = model.read(), expert(model.layout)
    model.write(standing | {name: rest[name] for name in names})
    layers = {name: _Layer.of(name, *pair, personal) for name, pair in model.factors().items()}
    model.write(standing | {name: personal[name] for name in names if name in personal})
    with ExitStack() as hooks:
        for name, (A, B) in model.factors().items():
            hooks.enter_context(A.register_forward_pre_hook(layers[name].see))
            hooks.enter_context(B.register_forward_hook(layers[name].mix))
        yield {name: gate for layer in layers.values() for name, gate in layer.gates.items()}


@dataclass(frozen=True, eq=False)
class _Layer:
    """In one layer A (r, d_in) and B (d_out, r) of the rest, and the gate: w (1, d_in) and b (1,)."""

    A: torch.Tensor
    B: torch.Tensor
    gates: dict[str, nn.Parameter]
    seen: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, A: nn.Module, B: nn.Module, personal: NamedArrays) -> _Layer:
        """With A and B as they stand in the model."""
        a, b = (module.get_parameter("weight").detach().clone() for module in (A, B))
        shapes = {f"{name}.gate.weight": (1, a.shape[1]), f"{name}.gate.bias": (1,)}
        starts = {key: personal.get(key, np.zeros(shape, np.float32)) for key, shape in shapes.items()}
        gates = {key: torch.tensor(start, device=a.device) for key, start in starts.items()}
        return cls(a, b, {key: nn.Parameter(gate) for key, gate in gates.items()})

    def see(self, module: nn.Module, args: tuple[torch.Tensor]) -> None:
        self.seen[:] = args

    def mix(self, module: nn.Module, args: object, own: torch.Tensor) -> torch.Tensor:
        x = self.seen.pop()
        g = torch.sigmoid(functional.linear(x, *self.gates.values()))
        return g * own + (1 - g) * functional.linear(functional.linear(x, self.A), self.B)
