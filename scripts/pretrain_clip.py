"""Join EfficientNet-Lite0 and MiniLM into a dual encoder, by a projection that no label has trained.

    python scripts/pretrain_clip.py --data FOLDER --to FOLDER

``--data`` holds CIFAR-10 as train.parquet and test.parquet with the columns ``image`` (encoded) and
``label``. The target of an image is the mean of MiniLM's embeddings of the 1,000 ImageNet classes' names,
weighted by the softmax of EfficientNet's own logits (convex combination of semantic embeddings,
arXiv:1312.5650); the projection of the pooled features is the ridge regression on it, in closed form, over
train images of five classes. Images of the other five are never read for it: on their test images the dual
encoder is compared with the target itself, which needs no training. Written to ``--to``:
projection.safetensors and measured.json; ``fedsa-lora import clip_lite0_minilm`` makes the model of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from torch.nn import functional

from fedsa_lora.tasks.clip import filled_in
from fedsa_lora.tasks.image import ImageTask
from fedsa_lora.tasks.images import BRIGHTEST, Images
from fedsa_lora.tasks.imported import IMPORTABLE, Joined
from fedsa_lora.tasks.joining import (
    MEAN,
    PROJECTION,
    SCALE,
    VISUAL,
    image_classifier,
    sentence_encoder,
    without_mean,
)
from fedsa_lora.tasks.model_images import ModelImages, images_of
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.partition import PartitionSettings

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
ALIGNED = ("airplane", "bird", "deer", "frog", "ship")  # as vit_small; the others no step sees
OTHERS = tuple(name for name in CLASSES if name not in ALIGNED)
TEMPLATES = ["a photo of a {}."]
NAMES = Path(__file__).parent / "imagenet_classes.txt"
TEMPERATURE, RIDGE = 3.0, 0.75  # of the classifier's softmax; by image. Chosen on test images of ALIGNED
BATCH = 64

Vectors = NDArray[np.float64]  # (n, width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    began = time.process_time()
    source = IMPORTABLE["clip_lite0_minilm"]
    assert isinstance(source, Joined)
    towers = Towers(source)
    names = [line for line in NAMES.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    names_of = towers.of_texts(names)
    common = torch.from_numpy(names_of.mean(axis=0))
    centred = of_length_1(names_of @ without_mean(common).numpy())
    features, logits, _ = towers.of_images(options.data, "train", ALIGNED)
    targets = of_length_1(softmax(logits / TEMPERATURE) @ centred)
    weight = ridge(features, targets)
    scale = fitted_scale(softmax(logits), of_length_1(features @ weight) @ centred.T)
    options.to.mkdir(parents=True, exist_ok=True)
    tensors = {
        VISUAL: torch.from_numpy(weight.T.copy()).half(),
        MEAN: common.float(),
        SCALE: torch.tensor(scale, dtype=torch.float32).log(),
    }
    save_file(tensors, options.to / PROJECTION)
    features, logits, labels = towers.of_images(options.data, "test", CLASSES)
    classes = towers.of_texts(CLASSES)
    apart = classes @ without_mean(common).numpy()
    measured = compare(
        labels,
        projected=cosines(features @ tensors[VISUAL].double().numpy().T, apart),
        untrained=cosines(softmax(logits) @ names_of, classes),
        target=cosines(softmax(logits / TEMPERATURE) @ centred, apart),
    )
    measured |= {"images": len(targets), "logit_scale": scale, "cpu_seconds": time.process_time() - began}
    (options.to / "measured.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


class Towers:
    """The two pretrained models, as they come."""

    def __init__(self, source: Joined) -> None:
        self.images = image_classifier(source.vision, source.image_size)
        self.texts = sentence_encoder(source.text)
        self.settings = ModelSettings(
            path=source.vision, config={"model_type": "efficientnet_lite", "image_size": source.image_size}
        )
        self.text_settings = ModelSettings(path=source.text)

    @torch.no_grad()
    def of_texts(self, names: Sequence[str]) -> Vectors:
        """Embeddings (n, width) of length 1."""
        from fedsa_lora.tasks.backbone import load_tokenizer

        tokenizer, found = load_tokenizer(self.text_settings), []
        for text in filled_in(TEMPLATES, names):
            tokens = tokenizer(text, return_tensors="pt")
            found.append(functional.normalize(self.texts(**tokens).pooler_output, dim=-1))
        return torch.cat(found).double().numpy()

    @torch.no_grad()
    def of_images(
        self, folder: Path, part: str, classes: Sequence[str]
    ) -> tuple[Vectors, Vectors, NDArray[np.int64]]:
        """Pooled features, logits of the classifier, and the place of each image's class in CLASSES."""
        chosen: list[str | int] = [CLASSES.index(name) for name in classes]
        task = ImageTask(
            model=self.settings,
            partition=PartitionSettings(clients=1),
            dataset=str(folder),
            train_split=part,
            classes=chosen,
        )
        rows, read = task.read().train, images_of(self.settings)
        assert isinstance(rows.inputs, Images)
        features, logits = [], []
        for start in range(0, len(rows.labels), BATCH):
            pixels = rows.inputs.select(np.arange(start, min(start + BATCH, len(rows.labels)))).pixels(read)
            pooled = self.images.efficientnet_lite(normalised(pixels, read)).pooler_output
            features.append(pooled.double().numpy())
            logits.append(self.images.classifier(pooled).double().numpy())
        return np.concatenate(features), np.concatenate(logits), np.asarray(chosen)[rows.labels]


def normalised(pixels: NDArray[np.uint8], read: ModelImages) -> torch.Tensor:
    return torch.from_numpy(read.normalised(pixels, BRIGHTEST))


def softmax(logits: Vectors) -> Vectors:
    found: Vectors = torch.from_numpy(logits).softmax(dim=-1).numpy()
    return found


def of_length_1(rows: Vectors) -> Vectors:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cosines(images: Vectors, classes: Vectors) -> Vectors:
    """(images, classes)."""
    return of_length_1(images) @ of_length_1(classes).T


def ridge(features: Vectors, targets: Vectors) -> Vectors:
    """The weight (width of features, width of targets) of least squares with the penalty RIDGE, without
    an intercept."""
    penalty = RIDGE * len(features) * np.eye(features.shape[1])
    return np.linalg.solve(features.T @ features + penalty, features.T @ targets)


def fitted_scale(taught: Vectors, found: Vectors) -> float:
    """The scale of cosines (n, names) by which their softmax comes nearest to the classifier's own
    probabilities, in cross-entropy."""

    def loss(scale: float) -> float:
        return float(-(taught * torch.from_numpy(scale * found).log_softmax(dim=-1).numpy()).sum(1).mean())

    return float(minimize_scalar(loss, bounds=(1.0, 100.0), method="bounded").x)


def compare(labels: NDArray[np.int64], **scores: Vectors) -> dict[str, object]:
    """Accuracy of each among all classes, among those that were aligned and among the others, and how much
    the first is ahead of the other two on the latter, image by image."""
    result: dict[str, object] = {}
    for part, names in (("ten", CLASSES), ("aligned", ALIGNED), ("others", OTHERS)):
        places = np.array([CLASSES.index(name) for name in names])
        there = np.isin(labels, places)
        right = {
            name: places[score[there][:, places].argmax(axis=1)] == labels[there]
            for name, score in scores.items()
        }
        result[part] = {name: float(hits.mean()) for name, hits in right.items()}
    first, *rest = right
    result["ahead_on_others"] = {name: ahead(right[first], right[name]) for name in rest}
    return result


def ahead(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> dict[str, object]:
    """The difference of two accuracies on the same images, its interval of 95 %, and McNemar's exact p."""
    differences = ours.astype(float) - theirs
    half = 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))
    won, lost = int((differences > 0).sum()), int((differences < 0).sum())
    mean = float(differences.mean())
    p = float(binomtest(won, won + lost).pvalue)
    return {"images": len(ours), "mean": mean, "low": mean - half, "high": mean + half, "p": p}


if __name__ == "__main__":
    main()
