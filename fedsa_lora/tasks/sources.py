"""Where rows come from: shipped sets, local parquet, CSV, TSV or JSON Lines files, and the hub."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import listing, nearest

SHIPPED = ("banking77", "clinc150", "snips")
DATA_VARIABLE = "FEDSA_LORA_DATA"
FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json"}
_READ_ERRORS = (DatasetsError, pa.ArrowException, OSError, ValueError)


def read_split(source: str | Mapping[str, str], split: str, subset: str | None = None) -> datasets.Dataset:
    """All rows of one split, in memory.

    ``source`` is a mapping of split names to files, the name of a shipped set, a local file or
    folder (``train.csv`` or ``train-*.csv`` is its split ``train``), or a hub id with an optional
    ``subset``. Nothing is written in the user's home, except the hub's own cache for a hub id.
    Raises DataError when there is nothing to read.
    """
    if isinstance(source, Mapping):
        return _read_files([_file_of(source, split)])
    if source in SHIPPED:
        return _read_files(_split_files(shipped_folder(source), split))
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_files(_split_files(path, split))
    if path.is_file():
        if split != "train":
            raise DataError(
                f"{source} is one file, so its only split is 'train', not {split!r}: set the test split to "
                "null (a part of each client's rows is then set aside), or give one file per split"
            )
        return _read_files([path])
    if path.suffix in FORMATS or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise DataError(f"no data at {source!r} (relative paths start from {Path.cwd()}); correct the path")
    return _read_hub(source, split, subset)


def shipped_folder(name: str) -> Path:
    """The folder with the parquet files of a shipped set.

    The running copy of the package may be a Flower bundle, which carries no binary files; the
    installed copy is then found along ``sys.path`` or through the distribution's metadata.
    """
    folders = [root / name for root in dict.fromkeys(_data_roots())]
    for folder in folders:
        if any(folder.glob("*.parquet")):
            return folder
    looked = "\n".join(f"  {folder}" for folder in folders)
    raise DataError(
        f"the shipped data set {name!r} was not found. Looked in\n{looked}\nInstall fedsa-lora in this "
        f"environment, or set {DATA_VARIABLE} to a folder that holds {name}/train.parquet."
    )


def _data_roots() -> Iterator[Path]:
    if configured := os.environ.get(DATA_VARIABLE):
        yield Path(configured).expanduser()
    yield Path(__file__).resolve().parent.parent / "data"
    for entry in sys.path:
        yield Path(entry or ".").resolve() / "fedsa_lora" / "data"
    try:
        installed = distribution("fedsa-lora")
    except PackageNotFoundError:
        return
    yield Path(str(installed.locate_file("fedsa_lora/data")))
    origin = urlparse(json.loads(installed.read_text("direct_url.json") or "{}").get("url", ""))
    if origin.scheme == "file":
        yield Path(url2pathname(origin.path)) / "fedsa_lora" / "data"


def _file_of(files: Mapping[str, str], split: str) -> Path:
    if split not in files:
        raise DataError(
            f"no file for split {split!r}: there are {listing(files)}; add one or rename the split"
        )
    path = Path(files[split]).expanduser()
    if not path.is_file():
        raise DataError(f"no data at {files[split]!r} for split {split!r} (relative to {Path.cwd()})")
    return path


def _split_files(folder: Path, split: str) -> list[Path]:
    """``train.parquet`` or the shards ``train-00000-of-00002.parquet`` of a folder."""
    files = sorted(path for path in folder.iterdir() if path.suffix in FORMATS)
    chosen = [path for path in files if path.stem == split or path.stem.startswith(f"{split}-")]
    if not chosen:
        splits = sorted({path.stem.split("-")[0] for path in files})
        raise DataError(
            f"{folder} has no split {split!r}{nearest(split, splits)}: there are "
            f"{listing(splits) or 'no data files'} (a split is a file such as {split}.csv)"
        )
    return chosen


def _read_files(paths: list[Path]) -> datasets.Dataset:
    suffixes = {path.suffix for path in paths}
    if len(suffixes) > 1 or not suffixes <= set(FORMATS):
        raise DataError(f"{listing(paths)}: expected files of one kind, out of {listing(FORMATS)}")
    suffix = suffixes.pop()
    # An empty cell must be seen as such; by default the word "null" or "NA" would vanish as well.
    options = {"keep_default_na": False, "sep": "\t" if suffix == ".tsv" else ","}
    try:
        # A cache of its own, gone when the rows are in memory: processes cannot collide in it.
        with tempfile.TemporaryDirectory() as cache, _without_progress():
            return datasets.load_dataset(
                FORMATS[suffix],
                data_files={"train": [str(path) for path in paths]},
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
                **(options if FORMATS[suffix] == "csv" else {}),
            )
    except _READ_ERRORS as error:
        raise DataError(
            f"cannot read {listing(paths)} as {FORMATS[suffix]}: {error.__cause__ or error}"
        ) from error


def _read_hub(source: str, split: str, subset: str | None) -> datasets.Dataset:
    name = f"{source}/{subset}" if subset else source
    try:
        with _without_progress():
            return datasets.load_dataset(source, subset, split=split)
    except _READ_ERRORS as error:
        raise DataError(
            f"cannot read split {split!r} of {name!r}: {error}\nIt is no local path and no shipped set "
            f"({listing(SHIPPED)}){nearest(source, SHIPPED)}, so the hub was asked. Without network, give "
            "a local folder, or point HF_HOME to a cache that holds it and set HF_HUB_OFFLINE=1."
        ) from error


@contextmanager
def _without_progress() -> Iterator[None]:
    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
