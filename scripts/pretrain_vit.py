"""Pretrain the small vision transformer on five classes of CIFAR-10, for federations over the other five.

    python scripts/pretrain_vit.py --data FOLDER --to FOLDER [--epochs 40]

``--data`` holds CIFAR-10 as train.parquet and test.parquet with the columns ``image`` (encoded) and
``label``. Images of the other five classes are never read for training: a linear probe on them, beside that
of a random transformer and of raw pixels, says what the weights are worth. After each epoch the state is
kept, and the command resumes from there: the same command gives the same weights. Written to ``--to``:
config.json, model.safetensors, preprocessor_config.json, curve.csv, curve.png, probe.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from fedsa_lora.tasks.augmentation import Augmentation
from fedsa_lora.tasks.image import ImageTask
from fedsa_lora.tasks.images import BRIGHTEST, Images
from fedsa_lora.tasks.model_images import ModelImages
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.partition import PartitionSettings

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
PRETRAINED = ("airplane", "bird", "deer", "frog", "ship")  # every second one; the others are for federations
SIDE, BATCH = 32, 128
AUGMENTATION = Augmentation(crop=4, flip=True)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's train part
IMAGES = ModelImages((SIDE, SIDE), len(MEAN), MEAN, STD)
RATE, DECAY, WARM, SMOOTHING = 1e-3, 0.05, 5, 0.1  # AdamW; epochs in which the rate rises
KEPT = (
    32  # patches of 64 that a training step sees of an image (PatchDropout, arXiv 2208.07220): half the time
)
WHOLE = 5  # last epochs, which see all
PROBED = 2000  # train images of the other classes that a probe is fitted on

Pixels = NDArray[np.uint8]  # (n, 3, 32, 32)
Labels = NDArray[np.int64]  # (n,)


def config() -> ViTConfig:
    """811,146 parameters with ten classes."""
    return ViTConfig(
        image_size=SIDE, patch_size=4, num_channels=3, hidden_size=128, num_hidden_layers=6,
        num_attention_heads=8, intermediate_size=256,
        id2label=dict(enumerate(PRETRAINED)), label2id={name: n for n, name in enumerate(PRETRAINED)},
    )  # fmt: skip


def read(folder: Path, part: str, classes: tuple[str, ...]) -> tuple[Pixels, Labels]:
    """The images of some classes, and the place of each one's class among them."""
    numbers: list[str | int] = [CLASSES.index(name) for name in classes]
    any_model = ModelSettings(pretrained=False, config={"model_type": "vit"})  # IMAGES say what is read
    task = ImageTask(
        model=any_model,
        partition=PartitionSettings(clients=1),
        dataset=str(folder),
        train_split=part,
        classes=numbers,
    )
    rows = task.read().train
    assert isinstance(rows.inputs, Images)
    return rows.inputs.pixels(IMAGES), rows.labels


def normalised(pixels: Pixels) -> torch.Tensor:
    """The same images as the model reads them."""
    return torch.from_numpy(IMAGES.normalised(pixels, BRIGHTEST))


def some_patches(rng: np.random.Generator, _: object, __: object, tokens: torch.Tensor) -> torch.Tensor:
    """The class token and ``KEPT`` patches of each image, out of (images, 1 + patches, width)."""
    order = rng.random((tokens.shape[0], tokens.shape[1] - 1)).argsort(1)[:, :KEPT]
    rows = torch.from_numpy(order)[:, :, None].expand(-1, -1, tokens.shape[2])
    return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, rows)], dim=1)


def batches(count: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    order = rng.permutation(count)
    yield from (order[start : start + BATCH] for start in range(0, count - BATCH + 1, BATCH))


class Pretraining:
    """A model and its optimizer, kept in a file after each epoch."""

    def __init__(self, to: Path, epochs: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = ViTForImageClassification(config())
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE)
        self.to, self.epochs, self.seed = to, epochs, seed
        self.curve: list[dict[str, float]] = []
        self.state = to / "state.pt"
        if self.state.exists():
            kept = torch.load(self.state, weights_only=True)
            self.model.load_state_dict(kept["model"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.curve = kept["curve"]

    def run(self, train: tuple[Pixels, Labels], test: tuple[Pixels, Labels]) -> None:
        while len(self.curve) < self.epochs:
            started = time.process_time()
            loss = self._epoch(len(self.curve), *train)
            row = {"epoch": len(self.curve) + 1, "loss": loss, "accuracy": self.accuracy(*test)}
            self.curve.append(row | {"cpu_seconds": time.process_time() - started})
            print(" ".join(f"{name} {value:.4g}" for name, value in self.curve[-1].items()), flush=True)
            self._keep()

    def _epoch(self, epoch: int, pixels: Pixels, labels: Labels) -> float:
        rng = np.random.default_rng([self.seed, epoch])
        self.model.train()
        hook = self.model.vit.embeddings.register_forward_hook(partial(some_patches, rng))
        if epoch >= self.epochs - WHOLE:
            hook.remove()
        losses = []
        steps = len(labels) // BATCH
        for step, indices in enumerate(batches(len(labels), rng)):
            for group in self.optimizer.param_groups:
                group["lr"] = RATE * self._factor(epoch + step / steps)
            logits = self.model(normalised(AUGMENTATION(pixels[indices], rng))).logits
            expected = torch.from_numpy(labels[indices])
            loss = nn.functional.cross_entropy(logits, expected, label_smoothing=SMOOTHING)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            losses.append(loss.item())
        hook.remove()
        return sum(losses) / len(losses)

    def _factor(self, epoch: float) -> float:
        """Of the rate: a line up, then half a cosine down."""
        if epoch < WARM:
            return epoch / WARM
        return 0.5 * (1 + math.cos(math.pi * (epoch - WARM) / max(1, self.epochs - WARM)))

    def _keep(self) -> None:
        kept = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(kept | {"curve": self.curve}, self.state.with_suffix(".new"))
        os.replace(self.state.with_suffix(".new"), self.state)

    @torch.no_grad()
    def accuracy(self, pixels: Pixels, labels: Labels) -> float:
        self.model.eval()
        found = [self.model(normalised(part)).logits.argmax(1).numpy() for part in np.array_split(pixels, 50)]
        return float((np.concatenate(found) == labels).mean())


@torch.no_grad()
def features(model: ViTForImageClassification, pixels: Pixels) -> NDArray[np.float32]:
    """What the head reads of each image, (n, 128)."""
    model.eval()
    parts = [model.vit(normalised(part)).last_hidden_state[:, 0] for part in np.array_split(pixels, 50)]
    return torch.cat(parts).numpy()


def probe(data: Path, model: ViTForImageClassification) -> dict[str, float]:
    """The accuracy of a linear classifier of the other five classes: of the model's features, of those of a
    random one, and of raw pixels."""
    others = tuple(name for name in CLASSES if name not in PRETRAINED)
    (pixels, labels), (tested, expected) = read(data, "train", others), read(data, "test", others)
    rows = np.random.default_rng(0).permutation(len(labels))[:PROBED]
    torch.manual_seed(1)
    untrained = ViTForImageClassification(config())
    seen = {
        "pretrained": lambda part: features(model, part),
        "random": lambda part: features(untrained, part),
        "pixels": lambda part: part.reshape(len(part), -1).astype(np.float32),
    }
    found = {}
    for name, view in seen.items():
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        classifier.fit(view(pixels[rows]), labels[rows])
        found[name] = float(classifier.score(view(tested), expected))
    return found


def save(done: Pretraining, found: dict[str, float]) -> None:
    done.model.save_pretrained(done.to)
    pixels = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": SIDE, "width": SIDE},
        "image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 255,
    }  # fmt: skip
    (done.to / "preprocessor_config.json").write_text(json.dumps(pixels, indent=1) + "\n")
    (done.to / "probe.json").write_text(json.dumps(found, indent=1) + "\n")
    with (done.to / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(done.curve[0]))
        writer.writeheader()
        writer.writerows(done.curve)
    draw(done.curve, done.to / "curve.png")


def draw(curve: list[dict[str, float]], path: Path) -> None:
    """The training loss and the accuracy on the test part of the five classes, by epoch."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    epochs = [row["epoch"] for row in curve]
    shown = {"loss": "training loss (label smoothing)", "accuracy": "accuracy, five classes"}
    for axes, (name, label) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        axes.plot(epochs, [row[name] for row in curve])
        axes.set(xlabel="epoch", ylabel=label)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--images", type=int, help="of the train part, to try the command")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    pixels, labels = read(given.data, "train", PRETRAINED)
    done = Pretraining(given.to, given.epochs, given.seed)
    done.run((pixels[: given.images], labels[: given.images]), read(given.data, "test", PRETRAINED))
    found = probe(given.data, done.model)
    print(found)
    save(done, found)


if __name__ == "__main__":
    main()
