"""A small random CLIP model, and a federated model of a class that knows nothing of this package."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
_TOKENS = {"vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}


def small_clip(seed: int = 0) -> CLIPModel:
    """A CLIPModel in evaluation mode whose weights are drawn from the seed: images of 32 x 32, 16 outputs."""
    config = CLIPConfig(
        vision_config={**_SIZES, "image_size": 32, "patch_size": 4},
        text_config={**_SIZES, **_TOKENS, "pad_token_id": 2},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return CLIPModel(config).eval()


class ImageClassifier(nn.Module):
    """A CLIP model with a linear classifier of four classes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.clip = small_clip(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.classifier = nn.Linear(16, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (images, 4)."""
        logits: torch.Tensor = self.classifier(self.clip.get_image_features(images).pooler_output)
        return logits


class FederatedCLIP:
    """A federated model as a user may have it: its own optimizer, and methods with its own signatures."""

    def __init__(self, seed: int = 0) -> None:
        self.model = ImageClassifier(seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)

    def get_parameters(self, config: dict[str, Any]) -> list[NDArray[Any]]:
        """Every tensor of the model."""
        return [value.detach().numpy().copy() for value in self.model.state_dict().values()]

    def set_parameters(self, parameters: list[NDArray[Any]]) -> None:
        """Overwrite every tensor of the model."""
        names = self.model.state_dict().keys()
        values = [torch.from_numpy(np.asarray(value)) for value in parameters]
        self.model.load_state_dict(dict(zip(names, values, strict=True)))

    def train_step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Take one step and return the loss before it."""
        self.model.train()
        loss = functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
        """The loss, and the number of images."""
        self.model.eval()
        return functional.cross_entropy(self.model(images), labels).item(), len(labels)


def batch(seed: int = 0, images: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images (images, 3, 32, 32) and labels (images)."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(images, 3, 32, 32, generator=drawn), torch.arange(images) % 4
