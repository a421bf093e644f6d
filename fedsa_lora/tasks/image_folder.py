"""Folders of images: one sub-folder for each class, in a folder for each split or in none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import listing, nearest
from fedsa_lora.tasks.tables import Part

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def is_image_folder(folder: Path) -> bool:
    """True where images lie in folders of their classes."""
    return bool(_classes(folder)) or bool(_splits(folder))


def find_images(folder: Path, split: str) -> Path | None:
    """The folder whose sub-folders are the classes of a split; None where there are no images.

    Without folders for splits all images are the split ``train``. Raises DataError for a split that is not
    there.
    """
    splits = _splits(folder)
    if split in splits:
        return folder / split
    if not splits and not _classes(folder):
        return None
    if not splits and split == "train":
        return folder
    there = f"folders for {listing(splits)}" if splits else "images, in folders of their classes"
    raise DataError(
        f"{folder} has no split {split!r}{nearest(split, splits)}: there are {there}; move the images of the "
        f"split to {folder / split}/CLASS, or set the test split to null (a part of each client's rows is "
        "then set aside)",
        sent="the data have no such split",
        key="task.test_split",
    )


def read_images(folder: Path) -> Part:
    """Columns ``image``, the bytes of a file, and ``label``, the name of the folder that it lies in; in the
    order of their names."""
    paths = [path for inner in _classes(folder) for path in _images(inner)]

    def read(column: str) -> pa.ChunkedArray:
        if column == "label":
            return pa.chunked_array([pa.array([path.parent.name for path in paths])])
        return pa.chunked_array([pa.array([_bytes(path) for path in paths], pa.large_binary())])

    files = [str(path) for path in paths]
    return Part(str(folder), ["image", "label"], len(paths), read, files=files)


def _splits(folder: Path) -> list[str]:
    return [path.name for path in _folders(folder) if _classes(path)]


def _classes(folder: Path) -> list[Path]:
    return [path for path in _folders(folder) if _images(path)]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    return sorted(path for path in found if not path.name.startswith(".") and path.is_file())


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; give this user the right to read it",
            sent="a data file cannot be read",
        ) from error
