"""Folders of images: one sub-folder for each class, in a folder for each split or in none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import listing, nearest
from fedsa_lora.tasks.tables import Part, names

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
TESTS = ("test", "validation", "valid", "val", "dev")  # usual names of what is measured on
SPLITS = ("train", *TESTS)


def is_image_folder(folder: Path) -> bool:
    """True where images lie in folders of their classes."""
    return bool(_classes(folder) or splits_in(folder))


def splits_in(folder: Path) -> list[str]:
    """The names of the folders that hold folders of classes. Beside folders of images none does, since a
    class may have further folders; but an image that lies loose in ``train`` makes no class of it."""
    holding = [path.name for path in _folders(folder) if _classes(path)]
    classes = [path.name for path in _classes(folder) if path.name not in SPLITS or path.name not in holding]
    return [] if classes else holding


def find_images(folder: Path, split: str) -> Path | None:
    """The folder whose sub-folders are the classes of a split; None where there are no images.

    Without folders for splits all images are the split ``train``. Raises DataError for a split that is not
    there.
    """
    splits = splits_in(folder)
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
    order of their names. Remarks say what is left out. Raises DataError for a file that cannot be read or is
    empty."""
    paths = [path for inner in _classes(folder) for path in images_in(inner)]

    def read(column: str) -> pa.ChunkedArray:
        if column == "label":
            return pa.chunked_array([pa.array([path.parent.name for path in paths])])
        return pa.chunked_array([pa.array([_bytes(path) for path in paths], pa.large_binary())])

    files = [str(path) for path in paths]
    return Part(
        str(folder), ["image", "label"], len(paths), read, files=files, notes=tuple(_left_out(folder))
    )


def images_in(folder: Path) -> list[Path]:
    """The images that lie in a folder itself, in the order of their names."""
    return sorted(_images(folder))


def _left_out(folder: Path) -> Iterator[str]:
    """Remarks on folders without images directly inside, and on files that are none by their names."""
    classes = _classes(folder)
    if empty := [path.name for path in _folders(folder) if path not in classes]:
        yield f"{folder}: no class, as it has no image: {names(empty)}"
    if loose := [path.name for path in images_in(folder)]:
        yield f"{folder}: images outside the folders of classes are not read: {names(loose)}"
    if inner := [f"{path.name}/{each.name}" for path in classes for each in _folders(path)]:
        yield f"{folder}: folders inside those of classes are not read: {names(inner)}"
    files = (path for inner in _folders(folder) for path in inner.iterdir() if path.is_file())
    others = Counter(path.suffix.lower() for path in files if not path.name.startswith("."))
    counts = [f"{count} {end or 'without an ending'}" for end, count in others.items() if end not in ENDINGS]
    if counts:
        yield f"{folder}: files left out, which are not images by their names: {names(counts)}"


def _classes(folder: Path) -> list[Path]:
    return [path for path in _folders(folder) if next(_images(path), None)]  # the first is enough


def _images(folder: Path) -> Iterator[Path]:
    found = (path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    return (path for path in found if not path.name.startswith(".") and path.is_file())


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:  # an entry knows what it is: to ask 50,000 images takes .2 s
        return sorted(Path(each) for each in entries if each.is_dir() and not each.name.startswith("."))


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; give this user read permission",
            sent="a data file cannot be read",
        ) from error
    if not data:
        raise DataError(f"{path} is empty; copy it again, or remove it", sent="a data file is empty")
    return data
