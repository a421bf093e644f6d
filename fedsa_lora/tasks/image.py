"""Classification of images: of the digits that come with scikit-learn, of files and of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.group import at_least, more_than
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.augmentation import Augmentation
from fedsa_lora.tasks.defaults import Code
from fedsa_lora.tasks.digits import DIGITS, LEVELS, SIDE, read_digits
from fedsa_lora.tasks.images import BRIGHTEST, MODES, Images, read_images
from fedsa_lora.tasks.model_images import ModelImages, images_of
from fedsa_lora.tasks.rows import Columns, Inputs, Kept, LabelledData, Rows
from fedsa_lora.tasks.shift import KINDS, Shift, shifts_of
from fedsa_lora.tasks.sourced import LabelledTask
from fedsa_lora.tasks.task import Batch, Examples, FederationData

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

CORNER = 8  # a trigger's side is one in so many of an image's, and at least two pixels
USUAL = (32, 32)  # pixels of an image, for a model that takes any number
_USAGE = """    pictures = [picture.convert("{mode}") for picture in pictures]  # PIL images
    inputs = processor(pictures, return_tensors="pt")
    classes = model(**inputs).logits.argmax(1)"""
_OF_DIGITS = """

In the run the digits' pixels are from 0 to 16: scale them to 0 to 255 for the processor."""
_SHIFTED = """In the run every image of this client, for training and for testing, was shifted:
{shift} (kind, and level from -1 to 1). The model is for images like these."""


@dataclass(frozen=True, kw_only=True)
class ImageTask(LabelledTask):
    """Images with a class each.

    ``dataset`` is "digits", or a parquet or npz file, a folder of such, a folder of images with a sub-folder
    for each class, or a hub id. ``image`` is a column's name. ``size`` (a side, or height and width),
    ``mean`` and ``std`` (of values from 0 to 1, for all channels or for each) are the model's own where they
    are not given; the digits stay as they are, 8 x 8 grey pixels, unless a size is given.

    ``random_crop`` (by up to so many pixels) and ``random_flip`` (left to right) change each train image anew
    in each round. With a ``shift`` all images of a client, those that it is measured on among them, are
    changed in one way that is its own: brighter or darker, blurred, rotated, or of other colours; "mixed"
    gives clients different kinds. ``shift_strength`` is how far they go.
    """

    dataset: str = DIGITS
    image: str = "image"
    size: int | list[int] | None = None
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    random_crop: Annotated[int, at_least(0)] = 0
    random_flip: bool = False
    shift: Literal["none", "mixed", "brightness", "blur", "rotation", "hue"] = "none"
    shift_strength: Annotated[float, more_than(0, 1)] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = {"image": self.image != "image", "group": self.group, "where": self.where}
        if self.dataset == DIGITS and (named := [name for name, given in columns.items() if given]):
            raise ConfigError(
                f"{', '.join(named)}: the digits have no columns to name; name a data set in task.dataset, "
                "or leave them out"
            )
        if self.shift != "none" and self.partition.own:
            raise ConfigError(
                f"shift={self.shift}: shifts are assigned by client number, but every node has its own data; "
                "expected shift=none",
                sent="shifts are assigned by client number, but every node has its own data",
                key="task.shift",
            )

    @property
    def auto_class(self) -> Any:
        """The class of transformers that builds the model."""
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification

    def build_model(self, *, seed: int, empty: bool = False) -> torch.nn.Module:
        """The backbone with its head; on the meta device and without weights when ``empty``."""
        from fedsa_lora.tasks.model_config import check_reads

        check_reads(self.auto_class, self.model)
        return super().build_model(seed=seed, empty=empty)

    @property
    def columns(self) -> Columns:
        return Columns({"image": self.image}, self.label, self.group, self.where)

    def inputs(self, kept: Kept, columns: Mapping[str, str]) -> Images:
        """The images, not decoded yet."""
        return read_images(kept, columns)

    def places(self) -> list[Path]:
        return [] if self.dataset == DIGITS else super().places()

    def read(self) -> LabelledData:
        """The rows of the train split, and of the test split where one is named; the digits have none."""
        return self.of_classes(read_digits()) if self.dataset == DIGITS else super().read()

    @cached_property
    def read_by_model(self) -> ModelImages:
        """The images that the model reads. Raises ConfigError where it is not clear which these are."""
        found = images_of(self.model, size=self.size, mean=self.mean, std=self.std)
        if self.dataset == DIGITS and self.size is None:
            # 8 x 8 grey pixels hold too little for a model of another size to be meant
            return replace(found, size=(SIDE, SIDE), channels=1, mean=found.mean[:1], std=found.std[:1])
        return found

    def batch_remedy(self) -> str:
        """The setting by which images are as large, and have as many colours, as the model takes them."""
        own = images_of(self.model)
        height, width = own.size or USUAL
        side = f"{height}" if height == width else f"[{height},{width}]"
        pixels = "any size" if own.size is None else f"{height} x {width} pixels"
        kind = "grey" if own.channels == 1 else "colour"
        return f"\nThe model reads {kind} images of {pixels}: set task.size={side}"

    def save_preprocessor(self, folder: Path) -> None:
        """Write the preprocessor config of the images."""
        self.read_by_model.save(folder)

    def preprocessor_code(self, folder: str) -> Code:
        """Code that loads the image processor."""
        line = f"processor = AutoImageProcessor.from_pretrained({folder})"
        return Code((("transformers", "AutoImageProcessor"),), (line,))

    def usage(self) -> str:
        """The code that classifies images."""
        mode = MODES[self.read_by_model.channels]
        return _USAGE.format(mode=mode) + (_OF_DIGITS if self.dataset == DIGITS else "")

    def about_client(self, client: str) -> str:
        """The shift of the client's images."""
        shift = self.shift_of(client)
        return "" if shift is None else _SHIFTED.format(shift=shift)

    def augmented(self, examples: Examples, rng: np.random.Generator) -> Examples:
        """The same images, moved and mirrored as the task says."""
        augmentation = Augmentation(self.random_crop, self.random_flip)
        if augmentation == Augmentation():
            return examples
        pixels = augmentation(np.asarray(examples.features["pixel_values"]), rng)
        return replace(examples, features={"pixel_values": pixels})

    def shift_of(self, client: str) -> Shift | None:
        """The feature shift of a client. Raises ConfigError for one of colours where there are none."""
        return None if self.shift == "none" else self._shifts[int(client)]

    def describe(self) -> FederationData:
        """Counts each client's examples, and names their shifts."""
        found = super().describe()
        shifts = [f"{client} {shift}" for client in found.clients if (shift := self.shift_of(client))]
        if not shifts:
            return found
        return replace(found, notes=(*found.notes, f"feature shift: client {listing(shifts)}"))

    def inspect(self) -> tuple[str, ...]:
        """Remarks on what the model is given of an image. Raises DataError for the first row that by its
        header, or as it is cut off, is no image for the model; whole ones are not decoded."""
        notes: list[str] = []
        if not self.partition.own:
            for rows in (self.data.train, self.data.test):
                if rows is not None:
                    notes += _images(rows.inputs).check(self.read_by_model)
        size = self.read_by_model.size
        if size is not None and self.random_crop >= min(size):
            raise ConfigError(
                f"task.random_crop={self.random_crop}: images of {min(size)} pixels cannot be moved so far; "
                "expected a few pixels",
                sent="images would be moved by more than their size",
                key="task.random_crop",
            )
        return (f"images are read as {self.read_by_model}", *notes)

    def triggered(self, inputs: Images) -> Images:
        """The same images, the pixels of the lower right corner at their brightest."""
        return inputs.edited(partial(_marked, brightest=inputs.brightest))

    def encode(self, inputs: Images, labels: NDArray[np.int64]) -> Examples:
        """``pixel_values``, uint8 (n, channels, height, width) of the model's size."""
        return Examples({"pixel_values": inputs.pixels(self.read_by_model)}, labels, np.ones_like(labels))

    def collate(self, examples: Examples, indices: NDArray[np.int64]) -> Batch:
        """``pixel_values``, float32 (batch, channels, height, width), normalised, and labels (batch,)."""
        import torch

        pixels = np.stack([examples.features["pixel_values"][index] for index in indices])
        if pixels.dtype == np.uint8:  # a task that derives from this one may have encoded more than pixels
            pixels = self.read_by_model.normalised(pixels, self._brightest)
        return {
            "pixel_values": torch.from_numpy(pixels),
            "labels": torch.from_numpy(examples.labels[indices]),
        }

    @cached_property
    def _colourless(self) -> bool:
        """True where the model sees no colours, as it reads none or the images have none."""
        return self.read_by_model.channels == 1 or _images(self.data.train.inputs).grey

    @cached_property
    def _shifts(self) -> tuple[Shift, ...]:
        """The feature shift of each client, where there is one."""
        kinds = tuple(kind for kind in KINDS if self.shift in ("mixed", kind))
        if self._colourless:
            kinds = tuple(kind for kind in kinds if kind != "hue")
        if not kinds:
            raise ConfigError(
                "task.shift=hue: the images are grey, or the model reads one channel: there is no hue; "
                "choose another shift",
                sent="there are no colours, and the run would shift these",
                key="task.shift",
            )
        return shifts_of(self.partition.clients, kinds, self.shift_strength, self._brightest, self.seed)

    @property
    def _brightest(self) -> int:
        return LEVELS if self.dataset == DIGITS else BRIGHTEST

    def _inputs(self, client: str, rows: Rows, indices: NDArray[np.int64]) -> Inputs:
        images, shift = super()._inputs(client, rows, indices), self.shift_of(client)
        return images if shift is None else _images(images).edited(shift)


def _marked(picture: Image, brightest: int) -> Image:
    """The picture with a bright square in its lower right corner."""
    width, height = picture.size
    side = max(2, min(width, height) // CORNER)
    marked = picture.copy()
    color = brightest if picture.mode == "L" else (brightest,) * len(picture.getbands())
    marked.paste(color, (width - side, height - side, width, height))
    return marked


def _images(inputs: Inputs) -> Images:
    """The inputs, which are images of ``read_images`` or ``read_digits``."""
    assert isinstance(inputs, Images)
    return inputs
