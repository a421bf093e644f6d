"""Small random models, and federated models of other classes than ours."""

import argparse

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 16, "patch_size": 2}
TEXT = {**SIZES, "vocab_size": 40, "max_position_embeddings": 12}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 0])
WORDS = torch.tensor([[0, 5, 6, 1], [0, 7, 1, 1], [0, 8, 9, 1], [0, 5, 5, 1]])


def clip(seed: int = 0) -> CLIPModel:
    torch.manual_seed(seed)
    config = CLIPConfig(vision_config=VISION, text_config={**TEXT, **TOKENS}, projection_dim=8)
    return CLIPModel(config).eval()


def dual(seed: int = 0) -> VisionTextDualEncoderModel:
    torch.manual_seed(seed)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**VISION), BertConfig(**TEXT), projection_dim=8
    )
    return VisionTextDualEncoderModel(config).eval()


MODELS = {"clip": clip, "dual": dual}


class Net(nn.Module):
    """A torch module of the test's own, whose config is none of a model."""

    def __init__(self, kind="clip", seed=0):
        super().__init__()
        self.config = argparse.Namespace(lr=0.002)
        self.backbone = MODELS[kind](seed)
        torch.manual_seed(seed)
        self.classifier = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, images):
        return self.classifier(self.backbone.get_image_features(images).pooler_output)


class Site:
    """A federated model that is no torch module: a mapping of tensors, keyword arguments, its own Adam."""

    kind = "clip"

    def __init__(self, seed=0):
        self.net = Net(self.kind, seed)
        groups = [{"params": self.net.backbone.parameters()}, {"params": self.net.classifier.parameters()}]
        self.optimizer = torch.optim.Adam(groups, lr=0.01)
        self.optimizer.param_groups[1]["lr"] = 0.02
        self.asked = 0

    def get_parameters(self, config, *, detached=True):
        self.asked += 1
        return {name: value.detach().clone() for name, value in self.net.state_dict().items()}

    def set_parameters(self, parameters, config=None):
        self.net.load_state_dict(parameters)

    def train_step(self, images, labels, *, scale=1.0):
        self.net.train()
        loss = scale * functional.cross_entropy(self.net(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(self, images):
        self.net.eval()
        return self.net(images)


class Module(Net):
    """A federated model that is a torch module itself: a list of arrays, as Flower's NumPyClient."""

    def get_parameters(self, config):
        return [value.numpy() for value in self.state_dict().values()]

    def set_parameters(self, parameters):
        names = self.state_dict()
        self.load_state_dict({n: torch.from_numpy(v) for n, v in zip(names, parameters, strict=True)})

    def train_step(self, images, labels, *, scale=1.0):
        self.train()
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.config.lr)
        loss = scale * functional.cross_entropy(self(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(self, images):
        self.eval()
        return self(images)


class DualSite(Site):
    kind = "dual"


KINDS = [Site, DualSite, Module]


def values(parameters) -> list[np.ndarray]:
    """What travels, as arrays, whatever form it has."""
    items = parameters.values() if isinstance(parameters, dict) else parameters
    return [np.asarray(item) for item in items]
