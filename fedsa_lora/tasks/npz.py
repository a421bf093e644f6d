"""Arrays that NumPy packed into one file, as columns: images as pixels, their classes and groups."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import cut
from fedsa_lora.tasks.tables import Part

NAMES = {"x": "image", "images": "image", "y": "label", "labels": "label"}  # columns by a usual name for them


def read_npz(path: Path) -> Part:
    """Each array (n, ...) as the column of its name; ``NAMES`` are columns by their other name as well, where
    there is none of it.

    Pixels are uint8 (n, height, width) or (n, height, width, 1 or 3). Raises DataError for a file that cannot
    be read, and for pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error, AttributeError) as error:
        objects = isinstance(error, ValueError)  # or no npz at all; of a damaged one zipfile speaks
        remedy = "write it with numpy.savez_compressed, without arrays of objects"
        raise DataError(
            f"cannot read {path} as npz: {cut(error, 300)}; {remedy if objects else 'copy it again'}",
            sent="a data file cannot be read",
        ) from error
    for name, meant in NAMES.items():
        if name in arrays:
            arrays.setdefault(meant, arrays[name])
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    first = next(iter(lengths.values()), 0)
    return Part(str(path), list(arrays), first, partial(_column, path, arrays), lengths=lengths)


def _column(path: Path, arrays: dict[str, NDArray[Any]], name: str) -> pa.ChunkedArray:
    array = arrays[name]
    if array.ndim == 2 and array.shape[1] == 1:  # so does Keras write labels
        array = array[:, 0]
    if array.ndim == 1:
        return pa.chunked_array([pa.array(array.tolist())])
    if array.dtype != np.uint8 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3))):
        raise DataError(
            f"{path}, array {name!r}: {array.dtype} {array.shape}; expected one value per row, or pixels as "
            "uint8 from 0 to 255, (rows, height, width) or (rows, height, width, 1 or 3)"
            f"{_remedy(array)}",
            sent="an array of a data file is neither one of values nor one of pixels",
        )
    pixels = np.ascontiguousarray(array[..., 0] if array.shape[3:] == (1,) else array)
    return pa.chunked_array([pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)])


def _remedy(array: NDArray[Any]) -> str:
    """Advice that makes pixels or labels of an array x in another common form."""
    if array.ndim == 2:
        return ": of labels as one-hot vectors take x.argmax(1), of flat pixels x.reshape to that shape"
    if array.dtype.kind in "bf" and array.size and 0 <= array.min() <= array.max() <= 1:
        return ": save (x * 255).astype('uint8')"
    if array.dtype != np.uint8:
        return ": scale it to 0 to 255 and save x.astype('uint8')"
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return ": save x.transpose(0, 2, 3, 1)"
    return ""
