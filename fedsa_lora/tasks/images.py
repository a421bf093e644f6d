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
from PIL import Image, ImageFile, ImageOps

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import cut
from fedsa_lora.tasks.image_bytes import are_usual, is_cut_off
from fedsa_lora.tasks.model_images import ModelImages
from fedsa_lora.tasks.rows import Kept

BRIGHTEST = 255
GREY_16 = "I;16"  # mode of 16 bits
DEEP = ("I", "F", GREY_16, "I;16B", "I;16L", "I;16N")  # more than 256 levels: eight bits would clip them
ORIENTATION, TURNED = 0x0112, 5  # a tag of Exif, and its least value that swaps height and width
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # for others Pillow starts programs (EPS)
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
        return len(self) > 0 and self._opened(int(self.rows[0])).mode in ("1", "L", "LA", GREY_16)

    def check(self, read: ModelImages) -> tuple[str, ...]:
        """Remarks on the images. Raises DataError for the first row that by the header and the end of its
        file is no image for the model, which takes those of one size where it states none itself; decoded
        is only what lacks its end."""
        if isinstance(self.column, np.ndarray):
            return ()
        first = None
        deep = []
        for row, usual in zip(self.rows.tolist(), are_usual(self.column)[self.rows], strict=True):
            if usual and read.size is not None:
                continue  # to open each costs a second for 40,000
            picture = self._opened(row)
            self._check_levels(row, picture)
            if not usual and is_cut_off(self._stored(row)):
                self._made(row, read)  # Pillow decodes some that lack no more than their end
            if isinstance(picture, ImageFile.ImageFile) and ";16" in str(picture.tile):
                deep.append(row)  # a tile names the form in which the file has its levels
            size = self._upright(row, picture)
            first = first or size
            if read.size is None and size != first:
                self._refuse_size(row, size, first)
        return self._on_deep(deep)

    def pixels(self, read: ModelImages) -> NDArray[np.uint8]:
        """The images as a model reads them, (n, channels, height, width), not normalised yet.

        Colours become grey by ITU-R 601 (.299 R + .587 G + .114 B) where the model has one channel, grey is
        copied into three; transparency is left out. Another size is resampled, whatever it does to the
        proportions; without a size of the model's own all images must have the same. Of levels of 16 bits in
        a PNG, and in any image of colours, the upper 8 are read. Raises DataError for an image that cannot be
        decoded, or whose levels go up to no known value.
        """
        made = [self._made(int(row), read) for row in self.rows]
        if not made:
            return np.zeros((0, read.channels, *(read.size or (0, 0))), dtype=np.uint8)
        for row, image in zip(self.rows, made, strict=True):
            if image.shape != made[0].shape:
                self._refuse_size(int(row), image.shape[1:], made[0].shape[1:])
        return np.stack(made)

    def _made(self, row: int, read: ModelImages) -> NDArray[np.uint8]:
        picture = self._opened(row)
        try:
            self._check_levels(row, picture)
            picture = ImageOps.exif_transpose(picture)
            if picture.mode == GREY_16:  # Pillow would clip it, where of colours it takes the upper bits
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            if picture.mode != MODES[read.channels]:
                picture = picture.convert(MODES[read.channels])
            if read.size is not None and picture.size != read.size[::-1]:
                picture = picture.resize(read.size[::-1], Image.Resampling(read.resample))
        except (DataError, MemoryError):
            raise
        except Exception as error:  # of whatever kind a decoder raises
            self._refuse(row, f"is not a readable image ({cut(error)})", "replace it, or remove the row")
        for edit in self.edits:
            picture = edit(picture)
        values = np.asarray(picture)
        return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)

    def _opened(self, row: int) -> Image.Image:
        if isinstance(self.column, np.ndarray):
            return Image.fromarray(self.column[row])
        try:
            return Image.open(io.BytesIO(self._stored(row)), formats=FORMATS)
        except Image.DecompressionBombError as error:
            self._refuse(row, f"is larger than Pillow opens ({cut(error, 120)})", "save a smaller one")
        except Exception:  # of whatever kind a decoder raises; its text would name an object in memory
            self._refuse(row, "is not a readable image", "replace it, or remove the row")

    def _stored(self, row: int) -> bytes:
        value = self.column[row]
        data: bytes = value.tobytes() if isinstance(value, np.ndarray) else value.as_py()
        return data

    def _upright(self, row: int, picture: Image.Image) -> tuple[int, int]:
        """Height and width as an image is looked at, from its header."""
        try:
            # without the first condition Pillow decodes a PNG to look for the tag
            turned = "exif" in picture.info and picture.getexif().get(ORIENTATION, 1) >= TURNED
        except Exception as error:  # of whatever kind a decoder raises
            self._refuse(row, f"is not a readable image ({cut(error)})", "replace it, or remove the row")
        return picture.size if turned else (picture.height, picture.width)

    def _check_levels(self, row: int, picture: Image.Image) -> None:
        if picture.mode == GREY_16 and picture.format == "PNG":
            return  # its levels go up to 65,535; in other formats they may end anywhere
        if picture.mode in DEEP:
            self._refuse(row, f"has more than 256 levels (mode {picture.mode})", "save it with 8 bits")

    def _on_deep(self, rows: list[int]) -> tuple[str, ...]:
        if not rows:
            return ()
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        return (f"{self._place(rows[0])}{more} has 16 bits a level, of which the upper 8 are read",)

    def _refuse(self, row: int, fault: str, remedy: str) -> NoReturn:
        raise DataError(
            f"{self._place(row)} {fault}; {remedy}",
            sent="an image of the data cannot be read as the run requires",
            key="task.image",
        )

    def _refuse_size(self, row: int, size: tuple[int, ...], other: tuple[int, ...]) -> NoReturn:
        sizes = [" x ".join(map(str, each)) for each in (size, other)]
        raise DataError(
            f"{self._place(row)} has {sizes[0]} pixels, another has {sizes[1]}; set task.size to the size "
            "that the model is to read",
            sent="the images of the data have different sizes, and the model states no size",
            key="task.size",
        )

    def _place(self, row: int) -> str:
        place, number = (f"column {self.name!r}", row + 1)
        if self.kept is not None:
            place, number = self.kept.at(row, self.name)
        return f"{place}: row {number}"


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
