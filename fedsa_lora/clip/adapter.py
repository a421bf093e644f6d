"""LoRA inside a module that stays where it is: the place of this package that knows PEFT."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedsa_lora.clip.base import Base
from fedsa_lora.clip.config import LoRAConfig
from fedsa_lora.errors import ModelError
from fedsa_lora.learning.batch_norms import keep_statistics
from fedsa_lora.learning.lora import ADAPTER
from fedsa_lora.learning.names import PREFIX
from fedsa_lora.learning.targets import check_kinds
from fedsa_lora.seeds import torch_seed
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.checkpoint import ADAPTER_WEIGHTS

ORIGINAL, TRAINED = ".original_module.", f".modules_to_save.{ADAPTER}."  # of a part that is trained whole


class Adapter:
    """LoRA on the ``layers`` of a module, and parts of it that are trained ``whole``. The module's layers are
    replaced within it: whoever holds the module computes with LoRA from then on. Its batch norms keep their
    statistics.

    A is drawn from the seed; ``path`` is that of the base. Raises ModelError where PEFT has no LoRA for a
    layer, and where the module has LoRA already; the module is then as it was.
    """

    def __init__(
        self,
        module: nn.Module,
        config: LoRAConfig,
        layers: Sequence[str],
        whole: Sequence[str] = (),
        seed: int = 0,
        path: str = "",
    ) -> None:
        if any(isinstance(part, BaseTunerLayer) for part in module.modules()):
            raise ModelError(f"{type(module).__name__} has LoRA already: merge it and unload it first")
        self.module, self.config, self.layers, self.whole = module, config, tuple(layers), tuple(whole)
        self.base = Base.of(module, whole, path)
        self.enabled = True
        self._trained_before = [name for name, value in module.named_parameters() if value.requires_grad]
        training = module.training
        self._peft = _injected(module, self._settings(), seed)
        module.train(training)  # PEFT's own modules begin in training mode
        self._statistics = keep_statistics(module)
        if other := self._not_meant():
            self.unload()
            raise ModelError(
                f"{type(module).__name__} has other layers whose names end like those requested, such as "
                f"{other[0]}, and PEFT cannot distinguish them: choose other target_modules, or rename that "
                "part"
            )
        self.names = tuple(name for name, value in module.named_parameters() if value.requires_grad)

    def _settings(self) -> LoraConfig:
        """The settings as PEFT has them. Raises ModelError for a layer that can have no LoRA."""
        found = {name: self.module.get_submodule(name) for name in self.layers}
        check_kinds(found, "target_modules", linear_only=False)
        return LoraConfig(
            r=self.config.r,
            lora_alpha=self.config.lora_alpha,
            lora_dropout=self.config.lora_dropout,
            bias=self.config.bias,
            target_modules=list(self.layers),
            modules_to_save=list(self.whole) or None,
            fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in found.values()),
        )

    def _not_meant(self) -> list[str]:
        """The layers that PEFT, which goes by the ends of names, adapted or trains whole beyond those
        meant."""
        end = ".modules_to_save"
        names = [name for name, _ in self.module.named_modules()]
        whole = {name.removesuffix(end) for name in names if name.endswith(end)}
        adapted = {name for name, part in self.module.named_modules() if isinstance(part, BaseTunerLayer)}
        return sorted((adapted - set(self.layers)) | (whole - set(self.whole)))

    def set_enabled(self, enabled: bool) -> None:
        """Compute with LoRA and the fully trained parts, or without them, bit-identically to the base.
        Raises ModelError where biases of the base were trained, which cannot be taken off."""
        if enabled == self.enabled:
            return
        if self.config.bias != "none":
            raise ModelError(
                f"bias={self.config.bias} trains biases of the base itself, so disabling LoRA would not give "
                "the base: use bias=none"
            )
        if enabled:
            self._peft.base_model.enable_adapter_layers()
        else:
            self._peft.base_model.disable_adapter_layers()
        self.enabled = enabled

    def merge(self) -> None:
        """Add s B A to the weights and take LoRA out of the module; whole parts stay as they were trained.
        The parameters that were trainable before LoRA are so again."""
        self.set_enabled(True)
        with _without_foreign_config(self.module):
            self._peft.merge_and_unload()
        self._restore()

    def unload(self) -> None:
        """Take LoRA out of the module, which is then as it was before."""
        with _without_foreign_config(self.module):
            self._peft.unload()
        self._restore()

    def _restore(self) -> None:
        """Let batch norms follow the data again, and train the parameters that were trained before."""
        for handle in self._statistics:
            handle.remove()
        parameters = dict(self.module.named_parameters())
        for name in self._trained_before:
            parameters[name].requires_grad_(True)

    @property
    def trainable_parameters(self) -> int:
        """The number of values that are trained."""
        parameters = dict(self.module.named_parameters())
        return sum(parameters[name].numel() for name in self.names)

    def state(self) -> dict[str, torch.Tensor]:
        """A, B and what else is trained, by the names that PEFT has for them in a file; copies on the CPU."""
        found: Mapping[str, torch.Tensor] = get_peft_model_state_dict(self._peft, save_embedding_layers=False)
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in found.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Overwrite every tensor of ``state``. Raises ModelError unless the names are exactly those: PEFT
        itself passes over the others."""
        ours = self.state().keys()
        if other := sorted(ours ^ state.keys()):
            raise ModelError(
                f"the tensors are not those of this adapter: {listing(other, 3)} on one side only"
            )
        set_peft_model_state_dict(self._peft, dict(state))

    def save(self, folder: Path) -> None:
        """Write the two files of a PEFT adapter."""
        stock = copy.deepcopy(self._peft.peft_config[ADAPTER])
        stock.base_model_name_or_path = self.base.path
        stock.inference_mode = True
        stock.save_pretrained(str(folder))
        save_file(self.state(), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _injected(module: nn.Module, settings: LoraConfig, seed: int) -> Any:
    try:
        with (
            _without_foreign_config(module),
            warnings.catch_warnings(action="ignore", category=FutureWarning),  # of names in transformers
            torch.random.fork_rng(devices=[]),
        ):
            torch.default_generator.manual_seed(torch_seed(seed, "clip"))
            return get_peft_model(module, settings)
    except (ValueError, TypeError) as error:
        raise ModelError(f"LoRA does not fit {type(module).__name__}: {error}") from None


@contextmanager
def _without_foreign_config(module: nn.Module) -> Iterator[None]:
    """Hides a ``config`` of the module's that is no config of a model, such as a command line's, from PEFT,
    which would read it as one."""
    config = vars(module).get("config")
    is_known = (
        config is None or isinstance(config, dict) or is_dataclass(config) or hasattr(config, "to_dict")
    )
    if is_known:
        yield
        return
    del module.config
    try:
        yield
    finally:
        setattr(module, "config", config)  # noqa: B010  # typed as a module or a tensor


def layer_of(tensor: str) -> str:
    """The layer that a tensor of an adapter's file belongs to."""
    name = tensor.removeprefix(PREFIX)
    return name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]
