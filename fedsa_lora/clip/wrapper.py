"""LoRA on a federated CLIP model that keeps its class, its methods and their signatures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fedsa_lora.clip.adapter import Adapter
from fedsa_lora.clip.config import LoRAConfig
from fedsa_lora.clip.federated import Exchange, hand_to_optimizers, module_of
from fedsa_lora.clip.layers import classifier_of, is_below, layers_with_lora, towers_of
from fedsa_lora.clip.tensors import TrainableTensors
from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.learning.checkpointing import keep_layers, recompute_layers


class CLIPLoRAWrapper:
    """LoRA on a federated model: any object that is a torch module or has one.

    ``apply_lora_to_federated_model`` replaces layers within that module, so the object is used as before,
    directly or through the wrapper, which has all of its attributes. ``target_components`` are ``encoder``,
    ``classifier`` or both, those of ``lora_config`` where they are not given. With ``save_only_trainable``
    its ``get_parameters`` and ``set_parameters`` exchange only the trainable tensors, in their order, with
    unchanged signatures; else they are not replaced. ``attribute`` names the torch module in the
    object, and ``classifier`` the classifier in the module, where they are ambiguous. ``base`` is the path
    of the pretrained model, for what is saved. A is drawn from ``seed``; equal on every client, all start
    alike.
    """

    def __init__(
        self,
        federated_clip_model: Any,
        lora_config: LoRAConfig | None = None,
        target_components: Sequence[str] | None = None,
        *,
        save_only_trainable: bool = True,
        attribute: str | None = None,
        classifier: str | None = None,
        base: str = "",
        seed: int = 0,
    ) -> None:
        config: Any = lora_config or LoRAConfig()
        if not isinstance(config, LoRAConfig):
            raise ConfigError(f"lora_config is a {type(config).__name__}; expected a LoRAConfig")
        if target_components is not None:
            named = [target_components] if isinstance(target_components, str) else target_components
            components: Any = tuple(named)
            config = replace(config, components=components)
        self.federated_model, self.lora_config = federated_clip_model, config
        self.module = module_of(federated_clip_model, attribute)
        self.save_only_trainable, self.seed = save_only_trainable, seed
        self._classifier = classifier_of(self.module, classifier)
        self._base_path = base
        self._adapter: Adapter | None = None
        self._exchange: Exchange | None = None
        self._warnings: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "federated_model" not in self.__dict__:
            raise AttributeError(name)  # of copies that are being made
        return getattr(self.federated_model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.federated_model(*args, **kwargs)

    def apply_lora_to_federated_model(self) -> Any:
        """Put LoRA into the federated model and return it. Optimizers among its attributes step the trainable
        tensors from then on; one that is kept elsewhere must be created again.

        Raises ModelError where the model has LoRA already, or lacks a requested layer; it is then unchanged.
        """
        layers = layers_with_lora(self.module, self.lora_config, self._classifier)
        self._adapter = Adapter(
            self.module, self.lora_config, layers, self._trained_whole(), self.seed, self._base_path
        )
        if self.save_only_trainable:
            self._exchange = self._exchanging()
        hand_to_optimizers(self.federated_model, self.module)
        return self.federated_model

    def _exchanging(self) -> Exchange:
        try:
            return Exchange(self.federated_model, self.trainable)
        except (AttributeError, TypeError) as error:
            self.adapter.unload()
            self._adapter = None
            raise ModelError(
                f"the methods of {type(self.federated_model).__name__} cannot be replaced ({error}): set "
                "save_only_trainable=False, and exchange what wrapper.trainable reads and writes"
            ) from None

    def _trained_whole(self) -> list[str]:
        """The classifier, where it gets no LoRA beside an encoder that does."""
        if self._classifier is None or "classifier" in self.lora_config.components:
            return []
        has_any = any(True for _ in self.module.get_submodule(self._classifier).parameters())
        return [self._classifier] if has_any else []

    @property
    def adapter(self) -> Adapter:
        """LoRA in the module. Raises ModelError where there is none: not yet, or merged."""
        if self._adapter is None:
            raise ModelError(
                "the federated model has no LoRA: call apply_lora_to_federated_model() first; merged LoRA "
                "can no longer be used"
            )
        return self._adapter

    @property
    def trainable(self) -> TrainableTensors:
        """The trainable tensors, by their names in the module. Raises ModelError where there is no LoRA."""
        return TrainableTensors(self.module, self.adapter.names)

    def enable_lora_layers(self) -> None:
        """Compute with LoRA again."""
        self.adapter.set_enabled(True)

    def disable_lora_layers(self) -> None:
        """Compute bit-identically to the base, with its classifier. Trained tensors are kept, and still
        exchanged. Raises ModelError where biases are trained."""
        self.adapter.set_enabled(False)

    def merge_and_unload(self) -> Any:
        """Add LoRA to the weights, take it out of the federated model, and return that, whose methods
        exchange all parameters again."""
        self.adapter.merge()
        if self._exchange is not None:
            self._exchange.restore()
        self._adapter = self._exchange = None
        return self.federated_model

    def enable_gradient_checkpointing(self) -> None:
        """Have the layers of every tower that is trained keep their input alone, and be computed again for
        their gradient (arXiv:1604.06174). It has an effect in training mode (``train()``); a forward pass
        with gradients in evaluation mode warns of that.

        Raises ModelError where no tower is trained, or one that is has no such layers.
        """
        towers = self._trained_towers()
        for name, tower in towers.items():
            if not tower.supports_gradient_checkpointing:
                raise ModelError(
                    f"{name or 'the module'} ({type(tower).__name__}) has no layers that support gradient "
                    f"checkpointing: leave it off, and use smaller batches"
                )
        if not towers:
            raise ModelError(
                f"{type(self.module).__name__} has no trained transformers tower, so gradient "
                "checkpointing would save nothing: leave it off"
            )
        self.disable_gradient_checkpointing()
        for tower in towers.values():
            recompute_layers(tower)
            self._warnings.append(tower.register_forward_pre_hook(_warn_in_evaluation))

    def disable_gradient_checkpointing(self) -> None:
        """Keep what is within layers again. Harmless where it was not enabled."""
        for name in towers_of(self.module):
            tower: Any = self.module.get_submodule(name)
            if tower.supports_gradient_checkpointing:
                keep_layers(tower)
        for handle in self._warnings:
            handle.remove()
        self._warnings = []

    def _trained_towers(self) -> dict[str, PreTrainedModel]:
        """The towers that have layers with LoRA, by name: for any other nothing is kept."""
        layers = self.adapter.layers
        towers: dict[str, Any] = {name: self.module.get_submodule(name) for name in towers_of(self.module)}
        return {
            name: tower for name, tower in towers.items() if any(is_below(layer, name) for layer in layers)
        }


def _warn_in_evaluation(tower: nn.Module, _: Any) -> None:
    if torch.is_grad_enabled() and not tower.training:
        warnings.warn(
            f"{type(tower).__name__} is in evaluation mode, where gradient checkpointing has no effect: "
            "call train() before the forward pass",
            stacklevel=2,
        )
