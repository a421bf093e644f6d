"""The model, the data of a client, and the two apps that Flower runs."""

import torch
from peft import LoraConfig
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Subset, TensorDataset

from fedsa_lora.flower import client_app, server_app


class Network(nn.Module):
    """A small network; a pretrained one would read its weights here."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.classifier = nn.Linear(32, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.body(pixels))
        return logits


def data(partition: int, partitions: int) -> tuple[Subset, Subset]:
    """The train set and the test set of a client: every n-th digit, a fifth of them for test."""
    digits = load_digits()
    pixels = torch.tensor(digits.data / 16, dtype=torch.float32)
    rows = range(partition, len(pixels), partitions)
    whole = TensorDataset(pixels, torch.tensor(digits.target))
    return Subset(whole, rows[len(rows) // 5 :]), Subset(whole, rows[: len(rows) // 5])


app = {
    "model": Network,
    "data": data,
    "lora": LoraConfig(r=4, target_modules=["body.0", "body.2"], modules_to_save=["classifier"]),
    "split": "share_a",
    "clients": 4,
    "classes": [str(digit) for digit in range(10)],
}
client = client_app(**app)
server = server_app(**app)
