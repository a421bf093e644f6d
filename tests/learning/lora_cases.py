"""Tiny models with every variant of LoRA, for the tests beside this file."""

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

import fedsa_lora.models  # noqa: F401  # transformers is to know efficientnet_lite
from fedsa_lora.learning.adapters import AdapterModel, LoraSettings, attach, initial_state

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {"vocab_size": 50, "max_position_embeddings": 32, "initializer_range": 0.2}
GPT2 = {
    "vocab_size": 50,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 16,
    "initializer_range": 0.2,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 1.0}
LITE = {"stem_channels": 8, "channels": [8, 16], "repeats": [1, 2], "kernels": [3, 5], "strides": [1, 2],
        "top_channels": 32, "dropout": 0.0}  # fmt: skip
PICTURED = ("resnet", "convnext", "efficientnet_lite")  # model types that read images
CONFIGS = {
    "bert": SMALL | TEXT,
    "gpt2": GPT2 | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "resnet": RESNET,
    "convnext": CONVNEXT,
    "efficientnet_lite": LITE,
}
WORDS = {"input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), "attention_mask": torch.ones(2, 4).long()}
PICTURES = {"pixel_values": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
Q_V = 2 * 2  # query and value of two layers


@dataclass(frozen=True)
class Case:
    """A model with a variant, and the numbers of A-like and B-like values that follow from it."""

    name: str
    A: int
    B: int
    kind: str = "bert"
    relative: tuple[str, ...] = ()  # parts of the names that are exchanged as differences
    settings: dict = field(default_factory=dict)

    def backbone(self):
        torch.manual_seed(0)
        auto = AutoModelForSequenceClassification
        if self.kind in PICTURED:
            auto = AutoModelForImageClassification
        return auto.from_config(AutoConfig.for_model(self.kind, num_labels=3, **CONFIGS[self.kind])).eval()

    @property
    def lora(self) -> LoraSettings:
        return LoraSettings(**{"r": 4, "alpha": 8, "dropout": 0.0} | self.settings)

    @property
    def batch(self):
        return PICTURES if self.kind in PICTURED else WORDS

    def model(self, seed: int = 0) -> AdapterModel:
        return AdapterModel(attach(self.backbone(), self.lora, seed))

    def skeleton(self) -> AdapterModel:
        with torch.device("meta"):
            empty = type(self.backbone())(self.backbone().config)
        return AdapterModel(attach(empty, self.lora))


def case(name: str, A: int, B: int, kind: str = "bert", relative: str = "", **settings) -> Case:
    return Case(name, A, B, kind, tuple(relative.split()), settings)


EMBEDS = ["word_embeddings", "query"]
CASES = [
    case("lora", Q_V * 64, Q_V * 64),
    case("rslora", Q_V * 64, Q_V * 64, rslora=True),
    case("dora", Q_V * 64, Q_V * (64 + 16), relative="magnitude", variant="dora"),
    case("vera", Q_V * 4, Q_V * 16, variant="vera"),
    case("pissa", Q_V * 64, Q_V * 64, relative="lora_A lora_B", init="pissa"),
    case("orthogonal", Q_V * 64, Q_V * 64, relative="lora_A lora_B", init="orthogonal"),
    case("layer_ranks", 2 * 16 * (2 + 6), 2 * 16 * (2 + 6), layer_ranks=[2, 6]),
    case(
        "pissa_dora", Q_V * 64, Q_V * 80, relative="lora_A lora_B magnitude", init="pissa", variant="dora",
        rslora=True, layer_ranks=[2, 6],
    ),
    case("embedding", 4 * 50 + 2 * 64, 3 * 64, target_modules=EMBEDS),
    case("embedding_dora", 4 * 50 + 2 * 64, 3 * 80, relative="magnitude", target_modules=EMBEDS,
         variant="dora"),
    case("gpt2", 2 * 64, 2 * 4 * 48, kind="gpt2"),
    case("gpt2_pissa", 2 * 64, 2 * 4 * 48, kind="gpt2", relative="lora_A lora_B", init="pissa"),
    case("gpt2_dora", 2 * 64, 2 * 5 * 48, kind="gpt2", relative="magnitude", variant="dora"),
    case("gpt2_vera", 4 * 4, 2 * (48 + 16), kind="gpt2", variant="vera", targets="attention"),
    case("resnet", 4 * (147 + 72 * 2 + 8 + 72 + 144), 4 * (8 * 3 + 16 * 3), kind="resnet",
         target_modules=["convolution"]),
    case("resnet_dora", 4 * (147 + 72 * 2 + 8 + 72 + 144), 5 * (8 * 3 + 16 * 3), kind="resnet",
         relative="magnitude", target_modules=["convolution"], variant="dora"),
    case("efficientnet_lite", 4 * (8 + 8 + 48 + 16 + 96 + 16), 4 * (8 + 48 + 16 + 96 + 16 + 32),
         kind="efficientnet_lite"),
    case("convnext", 4 * (8 + 32 + 16 + 64), 4 * (32 + 8 + 64 + 16), kind="convnext", targets="all_linear"),
]  # fmt: skip


@torch.no_grad()
def logits(module, case: Case) -> torch.Tensor:
    return module.eval()(**case.batch).logits


def moved(model: AdapterModel, seed: int = 1) -> dict[str, np.ndarray]:
    """The common start with every tensor changed: magnitudes a little, so that they stay positive."""
    rng = np.random.default_rng(seed)
    state = initial_state(model.layout, 0)
    return {
        name: value + rng.normal(0, 0.02 if "magnitude" in name else 0.2, value.shape).astype(np.float32)
        for name, value in state.items()
    }


def train(model: AdapterModel, case: Case, roles: str = "A B head", steps: int = 1, **options) -> list[float]:
    names = [s.name for s in model.layout if s.role in roles.split()]
    model.set_trainable(frozenset(names))
    model.module.train()
    torch.manual_seed(3)  # dropout of the backbone
    optimizer = torch.optim.AdamW([model.parameter(n) for n in names], **{"lr": 1e-2} | options)
    losses = []
    for _ in range(steps):
        loss = model.module(**case.batch, labels=torch.tensor([0, 2])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def names_of(model: AdapterModel, role: str) -> list[str]:
    return [s.name for s in model.layout if s.role == role]
