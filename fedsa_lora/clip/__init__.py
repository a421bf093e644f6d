"""LoRA on CLIP models of any federation, over PEFT: needs neither Flower nor Hydra."""

from __future__ import annotations

from fedsa_lora.clip.classifier import CLIPClassifier, quick_clip_lora
from fedsa_lora.clip.config import LoRAConfig
from fedsa_lora.clip.stored_configs import LoRAConfigManager
from fedsa_lora.clip.stored_models import LoRAModelManager, ModelInfo
from fedsa_lora.clip.wrapper import CLIPLoRAWrapper

__all__ = [
    "CLIPClassifier",
    "CLIPLoRAWrapper",
    "LoRAConfig",
    "LoRAConfigManager",
    "LoRAModelManager",
    "ModelInfo",
    "quick_clip_lora",
]
