"""Numbers of trainable parameters of LoRA on CLIP ViT-B/32, from the model itself on the meta device."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import CLIPConfig, CLIPModel

from fedsa_lora.clip.config import LoRAConfig
from fedsa_lora.clip.wrapper import CLIPLoRAWrapper

RANKS = (8, 16, 32)
_ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
SETTINGS = {
    "six kinds of both towers": LoRAConfig(towers="both"),
    "six kinds of the vision tower": LoRAConfig(),
    "q, k, v, out of the vision tower": LoRAConfig(target_modules=_ATTENTION),
}


def parameters() -> int:
    """The parameters of CLIP ViT-B/32."""
    return sum(value.numel() for value in _model().parameters())


def trainable(config: LoRAConfig) -> int:
    """The parameters of CLIP ViT-B/32 that are trained with these settings."""
    wrapper = CLIPLoRAWrapper(_model(), config)
    wrapper.apply_lora_to_federated_model()
    return wrapper.adapter.trainable_parameters


def table() -> str:
    """The counts as a table of Markdown."""
    lines = [
        f"| LoRA on CLIP ViT-B/32 ({parameters():,} parameters) | {' | '.join(f'r {r}' for r in RANKS)} |",
        f"|---|{'---|' * len(RANKS)}",
    ]
    for words, settings in SETTINGS.items():
        row = [f"{trainable(replace(settings, r=r)):,}" for r in RANKS]
        lines.append(f"| {words} | {' | '.join(row)} |")
    return "\n".join(lines)


def _model() -> CLIPModel:
    with torch.device("meta"):
        return CLIPModel(CLIPConfig())  # the sizes of openai/clip-vit-base-patch32
