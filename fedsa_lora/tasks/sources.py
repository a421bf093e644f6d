"""Sources of rows: shipped sets, local files and folders, and the hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import listing, nearest
from fedsa_lora.tasks.formats import FORMATS, SAVED, SAVED_SPLITS, is_data, read_file
from fedsa_lora.tasks.image_folder import (
    TESTS,
    find_images,
    images_in,
    is_image_folder,
    read_images,
    splits_in,
)
from fedsa_lora.tasks.shipped import SHIPPED, shipped_folder
from fedsa_lora.tasks.tables import Part, Table

# what tools write beside the data: JSON, but no rows
DESCRIPTIONS = (
    SAVED, SAVED_SPLITS, "dataset_info.json", "dataset_infos.json", "config.json", "dataset-metadata.json",
    "datapackage.json", "croissant.json", "metadata.json", "features.json", "label2id.json", "id2label.json",
)  # fmt: skip
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)(-[0-9a-f]+)?")  # the hub once added a digest


def read_split(source: str | Mapping[str, str], split: str, subset: str | None = None) -> Table:
    """All rows of one split, in memory.

    ``source`` is a mapping of split names to files, the name of a shipped set, a local file or folder, or a
    hub id. In a folder the file ``train.csv`` (the shards ``train-*.csv``, also in a folder ``data``) is its
    split ``train``; one that ``datasets.save_to_disk`` wrote is read as well, and one of images, each in the
    folder of its class. ``subset`` names one of
    several data sets of a hub id, or of a folder. Nothing is written in the user's home, except the
    hub's own cache for a hub id. Raises DataError when there is nothing to read, or not all of it.
    """
    found = find_split(source, split, subset)
    if isinstance(source, Mapping):
        return Table(f"{found[0]} ({split})", [read_file(path) for path in found])
    if found:
        return Table(f"{source} ({split})", [_read(path) for path in found])
    from fedsa_lora.tasks.huggingface import read_hub

    return Table(f"{source} ({split})", [read_hub(source, split, subset)])


def find_split(source: str | Mapping[str, str], split: str, subset: str | None = None) -> list[Path]:
    """The files, or the folder of ``datasets.save_to_disk`` or of images, that hold one split as
    ``read_split`` reads it; none for a hub id. Raises DataError where they are not there."""
    if isinstance(source, Mapping):
        _no_subset(subset, "task.files has one file per split, so it")
        return [_file_of(source, split)]
    if source in SHIPPED:
        _no_subset(subset, f"{source} is a shipped set, so it")
        return _find_in_folder(shipped_folder(source), split)
    path = Path(source).expanduser()
    if path.is_dir():
        return _find_in_folder(_subset(path, subset), split)
    if path.is_file():
        _no_subset(subset, f"{source} is one file, so it")
        if split != "train":
            raise DataError(
                f"{source} is one file{_ONE_SPLIT.format(split)}",
                sent="the data are one file and have no such split",
                key="task.test_split",
            )
        return [path]
    if path.suffix.lower() in FORMATS or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise DataError(
            f"no data at {source!r} (relative paths start from {Path.cwd()}); correct the path",
            sent="there are no data at the place that the run names",
            key="task.dataset",
        )
    return []


def on_unread_split(
    source: str | Mapping[str, str], train: str, subset: str | None = None
) -> tuple[str, ...]:
    """A remark where a run without a test split reads local data that have one, by the first usual name."""
    there = _splits(source, subset)
    unread = [split for split in TESTS if split in there and split != train]
    if not unread:
        return ()
    name = source if isinstance(source, str) else "task.files"
    return (
        f"{name}: the split {unread[0]!r} is not read, and clients are measured on a part of their train "
        f"rows; task.test_split={unread[0]} measures them on it",
    )


def _splits(source: str | Mapping[str, str], subset: str | None) -> Collection[str]:
    """The names of the splits that local data may have; none of one file, and of the hub."""
    if isinstance(source, Mapping):
        return source.keys()
    folder = shipped_folder(source) if source in SHIPPED else Path(source).expanduser()
    if not folder.is_dir():
        return ()
    folder = _subset(folder, subset)
    return _saved_splits(folder) or splits_in(folder) or _file_splits(folder)


_ONE_SPLIT = (
    ", so its only split is 'train', not {!r}: set the test split to null (a part of each client's rows is "
    "then set aside), or give one file per split"
)


def has_splits(path: Path) -> bool:
    """True where a place may hold a test split: a file does not, nor a folder that holds one saved set."""
    return path.is_dir() and not (path / SAVED).is_file()


def holds_data(place: Path) -> bool:
    """True where a file, or a folder without the choice of a subset, has anything that ``read_split``
    reads."""
    if place.is_file():
        return is_data(place)
    saved = any((place / name).is_file() for name in (SAVED, SAVED_SPLITS))
    return saved or bool(_data_files(place)) or is_image_folder(place)


def _file_of(files: Mapping[str, str], split: str) -> Path:
    if split not in files:
        raise DataError(
            f"no file for split {split!r}: there are {listing(files)}; add one or rename the split",
            sent="the run names no file for a split that it reads",
            key="task.files",
        )
    path = Path(files[split]).expanduser()
    if not path.is_file():
        raise DataError(
            f"no data at {files[split]!r} for split {split!r} (relative to {Path.cwd()})",
            sent="there is no file at the place that the run names",
            key="task.files",
        )
    return path


def _subset(folder: Path, subset: str | None) -> Path:
    """The folder of a subset, where the clone of a hub data set has one for each."""
    if not subset:
        return folder
    inner = _subsets(folder)
    if subset not in inner:
        _no_subset(subset, str(folder), sorted(inner))
    return inner[subset]


def _subsets(folder: Path) -> dict[str, Path]:
    """The folders inside, or inside of ``data``, that hold data, by their names."""
    found = [path for place in (folder / "data", folder) for path in place.glob("*") if path.is_dir()]
    return {path.name: path for path in found if path.name[0] != "." and holds_data(path)}


def _no_subset(subset: str | None, place: str, choices: Sequence[str] = ()) -> None:
    """Refuse a subset that is not there: the rows would be others than those that were asked for."""
    if subset:
        there = f"there are {listing(choices)}; choose one, or " if choices else ""
        raise DataError(
            f"{place} has no subset {subset!r}{nearest(subset, choices)}: {there}set task.subset=null",
            sent="the data have no such subset",
            key="task.subset",
        )


def _find_in_folder(folder: Path, split: str) -> list[Path]:
    if (folder / SAVED_SPLITS).is_file():
        return [_saved_split(folder, split)]
    if (folder / SAVED).is_file():
        if split != "train":
            raise DataError(
                f"{folder} holds one data set, saved by datasets{_ONE_SPLIT.format(split)}",
                sent="the data are one data set and have no such split",
                key="task.test_split",
            )
        return [folder]
    if images := find_images(folder, split):
        return [images]
    return _split_files(folder, split)


def _read(place: Path) -> Part:
    if not place.is_dir():
        return read_file(place)
    if not (place / SAVED).is_file():
        return read_images(place)
    from fedsa_lora.tasks.huggingface import read_saved

    return read_saved(place)


def _saved_split(folder: Path, split: str) -> Path:
    splits = _saved_splits(folder)
    if split not in splits:
        raise DataError(
            f"{folder}, saved by datasets, has no split {split!r}{nearest(split, splits)}: there "
            f"are {listing(splits)}",
            sent="the data have no such split",
            key="task.test_split",
        )
    return folder / split


def _saved_splits(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"*/{SAVED}"))


def _split_files(folder: Path, split: str) -> list[Path]:
    """``train.parquet`` or the shards ``train-00000-of-00002.parquet`` of a folder, or of ``data`` in it."""
    files = _data_files(folder)
    chosen = [path for path in files if path.stem == split or path.stem.startswith(f"{split}-")]
    if not chosen:
        raise DataError(
            _without_split(folder, files, split), sent="the data have no such split", key="task.test_split"
        )
    whole = any(path.stem == split for path in chosen)
    shards = [found.groups() for path in chosen if (found := _SHARD.fullmatch(path.stem))]
    several = len({(name, total) for name, _, total, _ in shards}) > 1
    mixed = shards and (len(shards) < len(chosen) or len({int(shard[1]) for shard in shards}) < len(shards))
    if (whole and len(chosen) > 1) or len({path.suffix for path in chosen}) > 1 or several or mixed:
        raise DataError(
            f"{folder} has more than one split {split!r}: {listing(path.name for path in chosen)}; "
            f"remove the others, or name the file in task.files.{split}",
            sent="the data have more than one file for a split",
        )
    if shards:
        _check_complete(folder, split, shards, chosen[0].suffix)
    return chosen


def _data_files(folder: Path) -> list[Path]:
    """The data files of a folder, or else those of ``data`` in it, in the order of their names."""
    for place in (folder, folder / "data"):
        files = sorted(path for path in place.glob("*") if is_data(path) and path.is_file())
        if files := [path for path in files if path.name not in DESCRIPTIONS]:
            return files
    return []


def _file_splits(folder: Path) -> list[str]:
    return sorted({path.stem.split("-")[0] for path in _data_files(folder)})


def _check_complete(folder: Path, split: str, shards: Sequence[Sequence[str]], suffix: str) -> None:
    """Raise DataError where one of the shards ``NAME-NUMBER-of-TOTAL`` of a split is not there."""
    name, written, total, _ = shards[0]
    there = {int(number) for _, number, _, _ in shards}
    start = int(0 not in there and int(total) in there)  # some count from 1
    missing = (number for number in range(start, start + int(total)) if number not in there)
    if (first := next(missing, None)) is not None:
        absent = f"{name}-{first:0{len(written)}}-of-{total}{suffix}"
        raise DataError(
            f"{folder} has {len(there)} of the {int(total)} files of split {split!r}: {absent} is missing; "
            "download it, or name the others without numbers to read only them",
            sent="a file of a split is missing",
        )


def _without_split(folder: Path, files: list[Path], split: str) -> str:
    """Advice on a folder without the files of a split."""
    if len(files) == 1 and split == "train":
        return f"{folder} has no split 'train' but one file, {files[0].name}: name the file itself"
    if files:
        splits = _file_splits(folder)
        return (
            f"{folder} has no split {split!r}{nearest(split, splits)}: there are "
            f"{listing(splits)} (a split is a file such as {split}.csv)"
        )
    if inner := sorted(_subsets(folder)):
        return f"{folder} holds one data set in each of {listing(inner)}: choose one with task.subset"
    if images := images_in(folder):
        return (
            f"{folder} has images, but no folder for each class of them: move each to the folder of its "
            f"class, as CLASS/{images[0].name}"
        )
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return (
        f"{folder} has no split {split!r}: there are no data files (expected one such as {split}.csv), but "
        f"{listing(there, 5) or 'nothing'}"
    )
