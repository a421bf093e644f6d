"""A PEFT model as named arrays with roles. The only file that knows PEFT's names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn

from fedsa_lora.errors import ModelError
from fedsa_lora.exchange.arrays import Layout, NamedArrays, Role, TensorSpec
from fedsa_lora.seeds import generator

HEADS = ("classifier", "score")  # what transformers names the layer behind the backbone
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraSettings:
    """LoRA of PEFT: h = W0 x + s B A x with s = alpha / r (rsLoRA: alpha / sqrt(r)).

    Without ``target_modules`` PEFT's defaults for the architecture are used, and the attention
    projections of query and value where PEFT has none.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    target_modules: list[str] | None = None
    rslora: bool = False


def attach(model: nn.Module, lora: LoraSettings | None) -> nn.Module:
    """The model with LoRA adapters and a trainable copy of its head; as it is without ``lora``.

    Raises ModelError when a target module is not in the model.
    """
    if lora is None:
        return model
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=lora.target_modules or _default_targets(model),
        modules_to_save=[name for name in HEADS if hasattr(model, name)],
        task_type=TaskType.SEQ_CLS if type(model).__name__.endswith("SequenceClassification") else None,
    )
    try:
        adapted: nn.Module = get_peft_model(model, config)
        return adapted
    except ValueError as error:
        raise ModelError(
            f"lora.target_modules={lora.target_modules} do not fit {type(model).__name__}: {error}"
        ) from None


def _default_targets(model: nn.Module) -> list[str] | None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as known

    if getattr(model.config, "model_type", None) in known:
        return None
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    leaves = {name.rsplit(".", 1)[-1] for name in linear}
    for pair in (["query", "value"], ["q_proj", "v_proj"], ["q_lin", "v_lin"]):
        if leaves.issuperset(pair):
            return pair
    raise ModelError(
        f"cannot infer LoRA targets for {type(model).__name__}: set lora.target_modules, for example from "
        f"{sorted(leaves)}"
    )


def plain_name(parameter: str) -> str:
    """PEFT's name of a parameter, less what PEFT wrapped around it."""
    name = parameter.removeprefix(_PREFIX)
    return name.replace(".modules_to_save.default", "").replace(".default.", ".")


def _role(parameter: str) -> Role:
    if ".lora_A." in parameter:
        return "A"
    if ".lora_B." in parameter:
        return "B"
    head = any(part in HEADS for part in parameter.split(".")[:-1])
    return "head" if head else "base"


class AdapterModel:
    """A model whose trainable tensors are read and written by plain names, in place.

    The layout holds every A, B and head tensor; a model without adapters is trained whole, so
    its layout holds the backbone as well. Backbone tensors are exchanged as their difference
    from the pretrained value: whoever holds only the layout starts from zeros.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = model
        whole = not isinstance(model, PeftModel)
        self._parameters: dict[str, nn.Parameter] = {}
        specs = []
        for raw, parameter in model.named_parameters():
            role = _role(raw)
            if "original_module" in raw or (role == "base" and not whole):
                parameter.requires_grad_(False)
                continue
            self._parameters[plain_name(raw)] = parameter
            name = plain_name(raw)
            layer = name.partition(".lora_")[0] if role in ("A", "B") else name.rpartition(".")[0]
            specs.append(TensorSpec(name, tuple(parameter.shape), role, layer))
        self.layout = Layout(tuple(specs))
        self._pretrained = {
            spec.name: self._parameters[spec.name].detach().clone()
            for spec in self.layout
            if spec.role == "base" and not self._parameters[spec.name].is_meta
        }

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def parameter(self, name: str) -> nn.Parameter:
        return self._parameters[name]

    def set_trainable(self, names: frozenset[str]) -> None:
        """Gradients for exactly these tensors."""
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in names)
            parameter.grad = None

    @torch.no_grad()
    def write(self, arrays: NamedArrays) -> None:
        """Overwrite every tensor of the layout. Raises LayoutError unless the arrays are exactly those:
        a state that is set in part would leave one client's tensors to the next."""
        self.layout.check(arrays)
        for name, parameter in self._parameters.items():
            value = torch.from_numpy(np.ascontiguousarray(arrays[name]))
            parameter.copy_(value)
            if name in self._pretrained:
                parameter.add_(self._pretrained[name])

    @torch.no_grad()
    def read(self) -> dict[str, NDArray[np.float32]]:
        """Copies of every tensor of the layout."""
        arrays = {}
        for name, parameter in self._parameters.items():
            value = parameter - self._pretrained[name] if name in self._pretrained else parameter
            arrays[name] = value.detach().to("cpu", torch.float32).numpy().copy()
        return arrays

    @property
    def has_adapters(self) -> bool:
        return isinstance(self.module, PeftModel)

    def save_adapter(self, folder: Path, arrays: NamedArrays, base: str) -> None:
        """Write the arrays as ``PeftModel.from_pretrained`` loads them over the backbone at ``base``.

        The model itself is left alone, and may be on the meta device.
        """
        assert isinstance(self.module, PeftModel)
        self.layout.check(arrays)
        state = {
            raw: torch.from_numpy(np.array(arrays[plain_name(raw)]))
            for raw, _ in self.module.named_parameters()
            if plain_name(raw) in arrays and "original_module" not in raw
        }
        self.module.peft_config["default"].base_model_name_or_path = base
        self.module.save_pretrained(str(folder), state_dict=state)

    def save_merged(self, folder: Path) -> None:
        """Write the model with its adapters merged, as transformers loads it. The adapters are used up."""
        module: Any = self.module.merge_and_unload() if isinstance(self.module, PeftModel) else self.module
        module.save_pretrained(str(folder))

    def counts(self) -> dict[str, int]:
        """Number of parameters by role."""
        found: dict[str, int] = {"base": 0, "A": 0, "B": 0, "head": 0}
        for raw, parameter in self.module.named_parameters():
            if "original_module" not in raw:
                found[_role(raw)] += parameter.numel()
        return found


def initial_state(
    layout: Layout, seed: int, head_row_norm: float | None = None
) -> dict[str, NDArray[np.float32]]:
    """The common start of server and clients, drawn from the seed tensor by tensor.

    A: Kaiming uniform with a = sqrt(5) as in LoRA (arXiv:2106.09685), that is
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)); B and biases: zero; head weights: N(0, 0.02), or rows of
    norm ``head_row_norm`` in the last head layer; backbone: no difference from the pretrained.
    """
    heads = [spec.name for spec in layout if spec.role == "head" and len(spec.shape) == 2]
    state: dict[str, NDArray[np.float32]] = {}
    for spec in layout:
        rng = generator(seed, "initial", spec.name)
        if spec.role == "A":
            bound = 1.0 / np.sqrt(np.prod(spec.shape[1:]))
            value: NDArray[Any] = rng.uniform(-bound, bound, spec.shape)
        elif spec.role == "head" and len(spec.shape) == 2:
            value = rng.normal(0.0, 0.02, spec.shape)
            if head_row_norm is not None and spec.name == heads[-1]:
                value *= head_row_norm / np.linalg.norm(value, axis=1, keepdims=True)
        else:
            value = np.zeros(spec.shape)
        state[spec.name] = value.astype(np.float32)
    return state
