"""Small pictures in each form that an image task reads, for the tests beside this file."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fedsa_lora.tasks.image import ImageTask
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.partition import PartitionSettings

NAMES = ("cat", "dog", "owl")


def vit(**config) -> ModelSettings:
    """A small vision transformer for colour images of 8 x 8."""
    fields = {
        "model_type": "vit",
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 3,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    return ModelSettings(pretrained=False, config=fields | config)


def drawn(count: int, *, side: int = 8, channels: int = 3, seed: int = 0):
    """Random pixels (n, side, side[, 3]) and class numbers (n,)."""
    rng = np.random.default_rng(seed)
    shape = (count, side, side) if channels == 1 else (count, side, side, channels)
    return rng.integers(0, 256, shape, dtype=np.uint8), np.arange(count) % len(NAMES)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_parquet(path: Path, images: list, labels, **columns) -> str:
    """Images as Hugging Face has them, or as they are where ``images`` are bytes."""
    table = {"image": images, "label": [NAMES[label] for label in labels], **columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return str(path)


def write_folder(folder: Path, images: list[bytes], labels) -> str:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / NAMES[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    return str(folder)


def write_saved(folder: Path, images: list[bytes], names) -> str:
    """A folder of ``datasets.save_to_disk`` with a feature of images."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": [{"bytes": image, "path": None} for image in images], "label": list(names)}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return str(folder)


def task(dataset: str, model: ModelSettings | None = None, *, clients: int = 1, **fields) -> ImageTask:
    partition = fields.pop("partition", PartitionSettings(clients=clients))
    return ImageTask(model=model or vit(), partition=partition, dataset=dataset, **fields)


def tensors(task: ImageTask) -> tuple[np.ndarray, list[str]]:
    """All train rows as the model reads them, in an order of their own, with the names of their classes."""
    rows = task.data.train
    batch = task.collate(task.encode(rows.inputs, rows.labels), np.arange(len(rows)))
    pixels, names = batch["pixel_values"].numpy(), [task.labels()[label] for label in batch["labels"]]
    order = sorted(range(len(names)), key=lambda at: (names[at], pixels[at].tobytes()))
    return pixels[order], [names[at] for at in order]
