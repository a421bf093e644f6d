"""Images as their source has them, encoded or as pixels, and as a model reads them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import cut
from fedsa_lora.tasks.model_images import ModelImages
from fedsa_lora.tasks.rows import Kept

BRIGHTEST = 255
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 256 levels: eight bits would clip them
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "TIFF",
    "BMP",
    "GIF",
    "PPM",
)  # others would have Pillow start programs (EPS)
BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # of a PNG and a JPEG file
MODES = {1: "L", 3: "RGB"}

Edit = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, eq=False)
class Images:
    """n images, those at ``rows`` of a column.

    ``column`` holds encoded images (PNG, JPEG, ...), as an Arrow array of bytes, or pixels, as uint8 (m,
    height, width) for grey or (m, height, width, 3), from 0 to ``brightest``. They are decoded when
    ``pixels`` are asked for, so that what is in memory is as large as the files; each of the ``edits`` is
    then made on the image as the model reads it. ``kept`` are the rows of the table that they come from, and
    ``name`` their column there, for messages.
    """

    column: Any
    rows: NDArray[np.int64]
    brightest: int = BRIGHTEST
    edits: tuple[Edit, ...] = ()
    kept: Kept | None = None
    name: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: NDArray[np.int64]) -> Images:
        """The images at some positions."""
        return replace(self, rows=self.rows[np.asarray(indices, dtype=np.int64)])

    def edited(self, edit: Edit) -> Images:
        """The same images with one more edit, after those before it."""
        return replace(self, edits=(*self.edits, edit))

    def __getitem__(self, rows: slice) -> Mapping[str, list[Any]]:
        """A digest of each image by the name of its input, for the fingerprint of the data."""
        return {"image": [hashlib.sha256(self._stored(int(row))).hexdigest() for row in self.rows[rows]]}

    @property
    def grey(self) -> bool:
        """True where the first image has no colours."""
        if isinstance(self.column, np.ndarray):
            return self.column.ndim == 3
        return len(self) > 0 and self._opened(int(self.rows[0])).mode in ("1", "L", "LA")

    def check(self) -> None:
        """Raise DataError for the first row that is no image by its header; nothing is decoded."""
        if isinstance(self.column, np.ndarray):
            return
        for row in self.rows:
            if not self._stored(int(row)).startswith(BEGINNINGS):  # to open each costs a second for 40,000
                self._opened(int(row))

    def pixels(self, read: ModelImages) -> NDArray[np.uint8]:
        """The images as a model reads them, (n, channels, height, width), not normalised yet.

        Colours become grey by ITU-R 601 (.299 R + .587 G + .114 B) where the model has one channel, grey is
        copied into three; transparency is left out. Another size is resampled, whatever it does to the
        proportions; without a size of the model's own all images must have the same. Raises DataError for an
        image that cannot be decoded or has more than 256 levels.
        """
        made = [self._made(int(row), read) for row in self.rows]
        if not made:
            return np.zeros((0, read.channels, *(read.size or (0, 0))), dtype=np.uint8)
        for row, image in zip(self.rows, made, strict=True):
            if image.shape != made[0].shape:
                sizes = f"{_size(image)} pixels, another has {_size(made[0])}"
                self._refuse(int(row), f"has {sizes}", "set task.size to the size that the model is to read")
        return np.stack(made)

    def _made(self, row: int, read: ModelImages) -> NDArray[np.uint8]:
        picture = self._opened(row)
        try:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode in DEEP:
                self._refuse(row, f"has more than 256 levels (mode {picture.mode})", "save it with 8 bits")
            if picture.mode != MODES[read.channels]:
                picture = picture.convert(MODES[read.channels])
            if read.size is not None and picture.size != read.size[::-1]:
                picture = picture.resize(read.size[::-1], Image.Resampling(read.resample))
        except (DataError, MemoryError):
            raise
        except Exception as error:  # of whatever kind a decoder raises
            self._refuse(row, f"is no image that can be read ({cut(error)})", "replace it, or remove the row")
        for edit in self.edits:
            picture = edit(picture)
        values = np.asarray(picture)
        return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)

    def _opened(self, row: int) -> Image.Image:
        if isinstance(self.column, np.ndarray):
            return Image.fromarray(self.column[row])
        try:
            return Image.open(io.BytesIO(self._stored(row)), formats=FORMATS)
        except Exception:  # of whatever kind a decoder raises; its text would name an object in memory
            self._refuse(row, "is no image that can be read", "replace it, or remove the row")

    def _stored(self, row: int) -> bytes:
        value = self.column[row]
        data: bytes = value.tobytes() if isinstance(value, np.ndarray) else value.as_py()
        return data

    def _refuse(self, row: int, fault: str, remedy: str) -> NoReturn:
        place, number = (f"column {self.name!r}", row + 1)
        if self.kept is not None:
            place, number = self.kept.at(row, self.name)
        raise DataError(
            f"{place}: row {number} {fault}; {remedy}",
            sent="an image of the data cannot be read as the run asks for",
            key="task.image",
        )


def read_images(kept: Kept, columns: Mapping[str, str]) -> Images:
    """The images of the column that ``columns`` names ``image``: bytes, Hugging Face's {bytes, path}, or
    pixels. Raises DataError for a column of anything else, and for rows without an image."""
    name = columns["image"]
    values = kept.column(name)
    if pa.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0:
        # what only names a file is not followed: whoever wrote the table would choose what is read here
        values = pc.struct_field(values, "bytes")
    if isinstance(values.type, pa.FixedShapeTensorType):
        column = values.combine_chunks().to_numpy_ndarray()
        return Images(column, np.arange(len(column)), kept=kept, name=name)
    if not (pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)):
        raise DataError(
            f"{kept.table.name}, column {name!r}: expected images (PNG, JPEG and others as bytes, or pixels "
            f"of an npz file), found {cut(values.type)}; name the column of the images in task.image",
            sent="a column that the run reads as images holds none",
            key="task.image",
        )
    empty = pc.equal(pc.fill_null(pc.binary_length(values), 0), 0)
    kept.refuse(
        np.flatnonzero(empty.to_numpy()),
        name,
        "has no image (a path alone is not followed)",
        "write the table with datasets' to_parquet, which puts the images in, or remove the row",
        sent="rows have no image",
        key="task.image",
    )
    return Images(values.combine_chunks(), np.arange(len(values)), kept=kept, name=name)


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]} x {image.shape[2]}"
