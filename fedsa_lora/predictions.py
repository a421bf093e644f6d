"""A client's predictions on its held-out examples: kept on the client's disk, never sent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fedsa_lora.errors import StoreError
from fedsa_lora.files import tensors_in, write_atomically, writing

FILE = "predictions.safetensors"


@dataclass(frozen=True)
class Predictions:
    """One answer for each of n held-out examples, in the order of the client's data.

    ``labels`` and ``predicted`` are (n,) int64 positions in ``names``, the classes in the order of this
    client's outputs; ``probability`` is (n,) float32, that of the predicted class. ``round`` is the one
    after which the model was measured.
    """

    round: int
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float32]


def from_logits(
    round_: int, names: tuple[str, ...], labels: NDArray[np.int64], logits: NDArray[np.float32]
) -> Predictions:
    """The most probable class of logits (n, classes), as accuracy counts it."""
    odds = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return Predictions(
        round_, names, labels, logits.argmax(axis=1), (1 / odds.sum(axis=1)).astype(np.float32)
    )


def write(folder: Path, predictions: Predictions) -> Path:
    """Replace what the folder of a client holds, whole or not at all."""
    arrays = {name: getattr(predictions, name) for name in ("labels", "predicted", "probability")}
    # one key: safetensors writes several in any order, and a file would not come out the same again
    about = json.dumps({"round": predictions.round, "names": predictions.names})
    with writing(folder):
        folder.mkdir(exist_ok=True)  # of a client that never trained
    return write_atomically(folder / FILE, save(arrays, {"about": about}))


def read(folder: Path) -> Predictions | None:
    """Reads a client's folder; None where its model was never measured."""
    path = folder / FILE
    if not path.exists():
        return None
    with tensors_in(path, partial(_unreadable, path)) as file:
        about = json.loads((file.metadata() or {})["about"])
        arrays = {name: file.get_tensor(name) for name in ("labels", "predicted", "probability")}
        return Predictions(about["round"], tuple(about["names"]), **arrays)


def _unreadable(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"{path} is unreadable ({reason}): it was truncated or corrupted; `fedsa-lora evaluate` writes it "
        f"again"
    )
