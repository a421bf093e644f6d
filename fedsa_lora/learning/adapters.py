"""A PEFT model as named arrays with roles. With its neighbours, the only place that knows PEFT."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.vera import VeraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedsa_lora.errors import ModelError
from fedsa_lora.exchange.arrays import Arrays, Layout, NamedArrays, TensorSpec
from fedsa_lora.learning.batch_norms import keep_statistics
from fedsa_lora.learning.dropout import Sites
from fedsa_lora.learning.initial import initial_state
from fedsa_lora.learning.lora import ADAPTER, attach
from fedsa_lora.learning.names import DIFFERENCE, PREFIX, plain_name, role_of
from fedsa_lora.learning.settings import LoraSettings
from fedsa_lora.learning.stock import refuse_tied, refuse_unstocked, save_backbone, stock_adapter
from fedsa_lora.tasks.heads import head_of, unwrapped

__all__ = ["AdapterModel", "LoraSettings", "attach", "initial_state", "plain_name"]

_WHOLE = f".modules_to_save.{ADAPTER}."  # in PEFT's names of what is trained whole
_ROUNDED = (nn.Linear, nn.modules.conv._ConvNd, Conv1D)  # whose weights autocast rounds


class AdapterModel:
    """A model whose trainable tensors are read and written by plain names, in place.

    The layout holds every A, B and head tensor; a model without adapters is trained whole, so its layout
    holds the backbone as well. What starts from the pretrained weights (the backbone itself, DoRA's
    magnitudes, A and B of PiSSA, a head that the checkpoint has) or from a draw of the attached model
    (orthogonal) is exchanged as its difference from that start, the value at the time this object is made:
    whoever holds only the layout starts from zeros. Such adapter and head tensors are named ``*.difference``.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = model
        config = model.peft_config[ADAPTER] if isinstance(model, PeftModel) else None
        drawn = getattr(config, "init_lora_weights", True) is True
        self._head = head_of(model)
        self._parameters: dict[str, nn.Parameter] = {}
        self._raw: dict[str, str] = {}
        specs = []
        for raw, parameter in model.named_parameters():
            role, layer = role_of(raw, self._head)
            if "original_module" in raw or (role == "base" and config is not None):
                parameter.requires_grad_(False)
                continue
            moved = role in ("A", "B") and (not drawn or "lora_magnitude_vector" in raw)
            moved |= plain_name(raw) in self._head.kept
            name = plain_name(raw) + DIFFERENCE * moved
            self._parameters[name], self._raw[name] = parameter, raw
            specs.append(TensorSpec(name, tuple(parameter.shape), role, layer))
        self.layout = Layout(tuple(specs))
        self._starts = {
            name: self._parameters[name].detach().clone()
            for name in self.relative
            if not self._parameters[name].is_meta
        }
        self.given: NamedArrays = {}  # what starts from an adapter that was trained before
        self.sites: Sites | None = None  # of dropout, found by the first training
        self._written: dict[str, torch.Tensor] = {}
        self._frozen: dict[str, torch.Tensor] = {}  # weights before the first merge, by layer
        keep_statistics(model)
        model.eval()  # PEFT's modules begin in training, those of the model within do not

    @property
    def relative(self) -> frozenset[str]:
        """The tensors that are exchanged as their difference from a start that only clients know."""
        return frozenset(s.name for s in self.layout if s.role == "base" or s.name.endswith(DIFFERENCE))

    def initial(self, seed: int, head_row_norm: float | None = None) -> Arrays:
        """The common start of server and clients: what is ``given``, all else as ``initial_state`` draws
        it."""
        return {**initial_state(self.layout, seed, head_row_norm), **self.given}

    @cached_property
    def frozen(self) -> frozenset[str]:
        """The names of the weights that are not in the layout: nobody trains them."""
        held = set(self._raw.values())
        return frozenset(plain_name(raw) for raw, _ in self.module.named_parameters() if raw not in held)

    @property
    def device(self) -> torch.device:
        return next(iter(self._parameters.values())).device

    @property
    def scales(self) -> dict[str, float]:
        """s of h = W0 x + s B A x by layer; 1 for VeRA."""
        return {
            name: float(module.scaling[ADAPTER]) if isinstance(module, LoraLayer) else 1.0
            for name, module in self._layers().items()
        }

    def parameter(self, name: str) -> nn.Parameter:
        return self._parameters[name]

    def set_mode(self, *, training: bool) -> None:
        """``train()`` or ``eval()`` where the model is not so already: it visits every layer, and takes as
        long as a step of a small model."""
        if self.module.training != training:
            self.module.train(training)

    def set_trainable(self, names: frozenset[str]) -> None:
        """Gradients for exactly these tensors."""
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in names)
            parameter.grad = None

    def hold_frozen(self, dtype: torch.dtype) -> None:
        """Keep the matrices that no one changes as autocast to ``dtype`` uses them: bit-identical results,
        without rounding again at each use. Those under an adapter stay, for merge()."""
        changing = {id(parameter) for parameter in self._parameters.values()}
        for layer in self._layers().values():
            changing |= {id(parameter) for parameter in layer.get_base_layer().parameters()}
        looked_up = {id(m.weight) for m in self.module.modules() if isinstance(m, nn.Embedding)}
        for module in self.module.modules():
            if isinstance(module, _ROUNDED):
                for parameter in module.parameters(recurse=False):
                    if id(parameter) not in changing | looked_up and parameter.is_floating_point():
                        parameter.data = parameter.data.to(dtype)

    @torch.no_grad()
    def write(self, arrays: NamedArrays) -> None:
        """Overwrite every tensor of the layout. Raises LayoutError unless the arrays are exactly those:
        a state that is set in part would leave one client's tensors to the next."""
        self.layout.check(arrays)
        for name, parameter in self._parameters.items():
            value = torch.from_numpy(np.require(arrays[name], requirements="C"))
            parameter.copy_(value)
            if name in self._starts:
                parameter.add_(self._starts[name].to(parameter.device))
                if name.endswith(DIFFERENCE):
                    self._written[name] = value.clone()

    @torch.no_grad()
    def read(self) -> dict[str, NDArray[np.float32]]:
        """Copies of every tensor of the layout; one that was written and not changed since, to the bit."""
        return {
            name: self._exchanged(name, parameter).detach().to("cpu", torch.float32).numpy().copy()
            for name, parameter in self._parameters.items()
        }

    def _exchanged(self, name: str, parameter: nn.Parameter) -> torch.Tensor:
        if name not in self._starts:
            return parameter
        start = self._starts[name].to(parameter.device)
        if name in self._written:
            # adding the start and taking it off again would round
            written = self._written[name].to(parameter.device)
            if torch.equal(parameter, written + start):
                return written
        return parameter - start

    @torch.no_grad()
    def merge(self, deltas: Mapping[str, NDArray[np.float32]]) -> None:
        """Set the frozen weight of each named layer to its first value plus s * delta.

        A delta is (d_out, d_in), as B @ A is; that of a convolution has d_in = channels * kernel.
        Layers that are not named go back to their first value (with PiSSA the residual).
        Raises ModelError, before anything is changed, for a layer without adapter or a wrong shape.
        """
        if not deltas and not self._frozen:
            return
        layers, scales = self._layers(), self.scales
        if unknown := sorted(deltas.keys() - layers.keys()):
            raise ModelError(
                f"cannot merge into {unknown}: no layers with adapters; there are {sorted(layers)}"
            )
        moves = {name: scales[name] * _oriented(name, layers[name], delta) for name, delta in deltas.items()}
        for name in self._frozen.keys() | deltas.keys():
            weight = layers[name].get_base_layer().weight
            first = self._frozen.setdefault(name, weight.detach().clone()).to(weight.device)
            weight.copy_(first + moves[name].to(weight.device) if name in moves else first)

    def _layers(self) -> dict[str, Any]:
        """PEFT's layers by the name that their tensors have in the layout."""
        return {
            name.removeprefix(PREFIX): module
            for name, module in self.module.named_modules()
            if isinstance(module, (LoraLayer, VeraLayer))
        }

    def linear_layers(self) -> dict[str, Any]:
        """PEFT's layers by name.

        Raises ModelError for one that does not compute W x + s B A x: DoRA, VeRA, embeddings, convolutions.
        """
        found = self._layers()
        for name, layer in found.items():
            plain = isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A and not layer.lora_variant
            if not plain or not isinstance(layer.lora_A[ADAPTER], nn.Linear):
                raise ModelError(
                    f"{name}: expected plain LoRA on a linear layer: set lora.variant=lora and "
                    "lora.target_modules to such layers"
                )
        return found

    def factors(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        """A and B of each layer as they stand in the model, by layer. Raises ModelError as
        ``linear_layers`` does."""
        layers = self.linear_layers()
        return {name: (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]) for name, layer in layers.items()}

    @property
    def has_adapters(self) -> bool:
        return isinstance(self.module, PeftModel)

    def save_adapter(self, folder: Path, arrays: NamedArrays, base: str) -> None:
        """Write the arrays as ``PeftModel.from_pretrained`` loads them over the backbone that
        ``save_backbone`` writes; ``base`` is the path to it that the adapter's config names.

        The model itself is left alone. It may be on the meta device unless tensors are ``relative``:
        ModelError is raised then, for their start is not known there; and for a model that no stock code
        computes. PiSSA is written as plain LoRA of twice the rank, s (B A - B0 A0), so that the backbone need
        not be decomposed again.
        """
        assert isinstance(self.module, PeftModel)
        self.layout.check(arrays)
        if lacking := sorted(self.relative - self._starts.keys()):
            raise ModelError(
                f"{lacking[0]} and {len(lacking) - 1} more are relative to weights that a model on the meta "
                "device does not have: save from a model with its backbone"
            )
        # a batch norm that is trained whole keeps the statistics that it starts with, and PEFT reads them
        state = {raw: value for raw, value in self.module.state_dict().items() if _WHOLE in raw}
        state |= {raw: torch.from_numpy(np.array(arrays[name])) for name, raw in self._raw.items()}
        starts = {self._raw[name]: start.to("cpu", torch.float32) for name, start in self._starts.items()}
        for raw, start in starts.items():
            state[raw] += start
        configs, kept = self.module.peft_config, self.module.peft_config[ADAPTER]
        state, stock = stock_adapter(self.module, state, starts, base)
        try:
            configs[ADAPTER] = stock
            self.module.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
        finally:
            configs[ADAPTER] = kept

    def save_merged(self, folder: Path) -> None:
        """Write the model with its adapters merged, as stock transformers computes it. The adapters are used
        up. Raises ModelError for a model that no stock code computes."""
        module: Any = self.module
        refuse_unstocked(module)
        if getattr(unwrapped(module), "is_quantized", False):
            raise ModelError(
                "an adapter is not merged into quantised weights, which are too coarse for it: export the "
                "adapter, without --merge"
            )
        refuse_tied(module, self._layers())
        save_backbone(module.merge_and_unload() if isinstance(module, PeftModel) else module, folder)

    def counts(self, chosen: Callable[[str], bool] = lambda name: True) -> dict[str, int]:
        """Number of parameters by role, of those whose names are ``chosen``."""
        found: dict[str, int] = {"base": 0, "A": 0, "B": 0, "head": 0}
        for raw, parameter in self.module.named_parameters():
            if "original_module" not in raw and chosen(plain_name(raw)):
                found[role_of(raw, self._head)[0]] += parameter.numel()
        return found


def _oriented(name: str, layer: Any, delta: NDArray[np.float32]) -> torch.Tensor:
    """A delta (d_out, d_in) in the shape of the layer's frozen weight."""
    weight = layer.get_base_layer().weight
    turned = isinstance(layer.get_base_layer(), nn.Embedding) or getattr(layer, "fan_in_fan_out", False)
    shape = tuple(weight.shape[::-1]) if turned else (weight.shape[0], math.prod(weight.shape[1:]))
    if delta.shape != shape:
        raise ModelError(f"cannot merge into {name}: expected a delta of shape {shape}, got {delta.shape}")
    tensor = torch.from_numpy(np.array(delta, dtype=np.float32))
    return (tensor.T if turned else tensor.reshape(weight.shape)).contiguous()
