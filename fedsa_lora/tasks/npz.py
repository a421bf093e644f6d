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
    be read, for pickled objects, and for arrays of different lengths.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error, AttributeError) as error:
        raise DataError(
            f"cannot read {path} as npz: {cut(error, 300)}; write it with numpy.savez_compressed, without "
            "arrays of objects",
            sent="a data file cannot be read",
        ) from error
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    first = next(iter(lengths), "")
    if other := next((name for name in lengths if lengths[name] != lengths[first]), None):
        raise DataError(
            f"{path}: {first!r} has {lengths[first]} rows and {other!r} has {lengths[other]}: expected as "
            "many in every array",
            sent="the arrays of a data file have different lengths",
        )
    for name, meant in NAMES.items():
        if name in arrays:
            arrays.setdefault(meant, arrays[name])
    return Part(str(path), list(arrays), lengths.get(first, 0), partial(_column, path, arrays))


def _column(path: Path, arrays: dict[str, NDArray[Any]], name: str) -> pa.ChunkedArray:
    array = arrays[name]
    if array.ndim == 1:
        return pa.chunked_array([pa.array(array.tolist())])
    if array.dtype != np.uint8 or not (array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3))):
        raise DataError(
            f"{path}, array {name!r}: {array.dtype} {array.shape}; expected one value per row, or pixels as "
            "uint8 from 0 to 255, (rows, height, width) or (rows, height, width, 1 or 3)",
            sent="an array of a data file is neither one of values nor one of pixels",
        )
    pixels = np.ascontiguousarray(array[..., 0] if array.shape[3:] == (1,) else array)
    return pa.chunked_array([pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)])
