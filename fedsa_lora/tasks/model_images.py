"""Images as a model takes them: size, channels, and the mean and the deviation that it was trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.suggest import cut, listing
from fedsa_lora.tasks.model_settings import ModelSettings, resolve

PREPROCESSOR = "preprocessor_config.json"  # beside the weights of a checkpoint
MIDDLE = 0.5  # mean and deviation where no one says: pixels in [-1, 1]
OF_RUN = "fedsa_lora_run"  # in the preprocessor config of an export: its size is the one that the run read
LARGEST = 4096  # pixels of a side
BILINEAR = 2  # as PIL counts resampling filters, and with it a preprocessor config

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class ModelImages:
    """The images that a model reads: (channels, height, width), each value from 0 to 1 less the ``mean`` and
    then divided by the ``std`` of its channel. ``size`` is None where the model takes any; ``resample`` is
    PIL's number of a filter."""

    size: Size | None
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = BILINEAR

    def __str__(self) -> str:
        size = "any size" if self.size is None else " x ".join(map(str, self.size))
        mean, std = (listing(f"{each:.3g}" for each in dict.fromkeys(of)) for of in (self.mean, self.std))
        channels = "1 channel" if self.channels == 1 else f"{self.channels} channels"
        return f"{size} in {channels}, less {mean} and divided by {std}"

    def normalised(self, pixels: NDArray[np.uint8], brightest: int) -> NDArray[np.float32]:
        """float32 (n, channels, height, width) of pixels from 0 to ``brightest``."""
        values = pixels.astype(np.float32)
        values /= brightest
        values -= np.array(self.mean, dtype=np.float32)[:, None, None]
        values /= np.array(self.std, dtype=np.float32)[:, None, None]
        return values

    def save(self, folder: Path) -> None:
        """Write the preprocessor config by which transformers, and ``images_of``, make a model's images."""
        config: dict[str, Any] = {
            "image_processor_type": "ViTImageProcessor",  # resizes, rescales and normalises, and nothing else
            "do_resize": self.size is not None,
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            OF_RUN: True,
        }
        if self.size is not None:
            config["size"] = {"height": self.size[0], "width": self.size[1]}
        (folder / PREPROCESSOR).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def images_of(
    settings: ModelSettings,
    *,
    size: int | Sequence[int] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> ModelImages:
    """The images of a model: what is given here; else its config has the size and the channels, and its
    preprocessor config the rest, each of them what the other does not have. An export's preprocessor config
    has the size as well: a model that reads any size may have been trained with another than its config's.

    Raises ConfigError for a size, a mean or a deviation that cannot be, and for a model of other than one or
    three channels.
    """
    from fedsa_lora.tasks.model_config import load_config

    config, _ = load_config(settings, ())
    config = getattr(config, "vision_config", config)
    stored = _preprocessor(settings)
    channels = int(getattr(config, "num_channels", 3))
    if channels not in (1, 3):
        raise ConfigError(
            f"the model reads images of {channels} channels: expected 1 or 3; correct "
            "model.config.num_channels"
        )
    processed = stored.get("crop_size") or stored.get("size")
    stated = getattr(config, "image_size", None) or processed
    if OF_RUN in stored and "image_size" not in settings.config:
        stated = processed
    # a preprocessor may count in other units: its mean and deviation are then of these
    unit = 255 * stored.get("rescale_factor", 1 / 255) if stored.get("do_rescale", True) else 255
    normal = stored.get("do_normalize", True)
    known_mean = stored.get("image_mean", getattr(config, "image_mean", MIDDLE)) if normal else 0.0
    known_std = stored.get("image_std", getattr(config, "image_std", MIDDLE)) if normal else 1.0
    return ModelImages(
        size=_pair(stated if size is None else size),
        channels=channels,
        mean=_each(known_mean, unit, channels) if mean is None else _given("mean", mean, channels),
        std=_positive(_each(known_std, unit, channels) if std is None else _given("std", std, channels)),
        resample=int(stored.get("resample", BILINEAR)),
    )


def _preprocessor(settings: ModelSettings) -> dict[str, Any]:
    """The preprocessor config of a checkpoint; nothing of one without, or of a bare config."""
    from fedsa_lora.tasks.checkpoint import stored_file

    if not settings.path:
        return {}
    file = stored_file(resolve(settings.path), PREPROCESSOR, settings.revision, fetch=True)
    if file is None:
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(
            f"{file} is not JSON ({cut(error)}): copy it again, or remove it and set task.size, mean and std",
            sent="the preprocessor config of the model is damaged",
            key="model.path",
        ) from None
    return found if isinstance(found, dict) else {}


def _pair(size: Any) -> Size | None:
    """A size in any of the forms that configs have: a number, (height, width), or a mapping of sides."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(isinstance(side, int) and 0 < side <= LARGEST for side in sides):
        raise ConfigError(
            f"the size of images is {size!r}: expected a number of pixels up to {LARGEST:,}, or [height, "
            "width]; correct task.size"
        )
    return sides[0], sides[1]


def _each(value: Any, unit: float, channels: int) -> tuple[float, ...]:
    """A value for each channel, from one for all or from one each."""
    given = [float(value)] if isinstance(value, int | float) else [float(each) for each in value]
    if len(given) not in (1, channels):
        raise ConfigError(
            f"{len(given)} values of mean or deviation for images of {channels} channels; expected one, or "
            f"{channels}: set task.mean and task.std"
        )
    values = tuple(each / unit for each in given)
    return values * channels if len(values) == 1 else values


def _given(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """A value of the task for each channel, in parts of the brightest pixel."""
    values = _each(value, 1, channels)
    if not all(0 <= each <= 1 for each in values):
        raise ConfigError(
            f"task.{name}={value}: expected values from 0 to 1, as pixels are from 0 (black) to 1 "
            "(brightest); divide those that count to 255 by 255",
            sent="mean or deviation of pixels is not from 0 to 1",
            key="task.mean",
        )
    return values


def _positive(values: tuple[float, ...]) -> tuple[float, ...]:
    if min(values) <= 0:
        raise ConfigError(f"a deviation of pixels is {min(values):g}: expected more than 0; correct task.std")
    return values
