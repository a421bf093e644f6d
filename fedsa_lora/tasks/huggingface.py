"""Data sets that the library ``datasets`` wrote to a folder, or fetches from the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as LOADERS

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import cut, listing, nearest
from fedsa_lora.tasks.formats import SAVED
from fedsa_lora.tasks.hub import is_hub_id
from fedsa_lora.tasks.shipped import SHIPPED
from fedsa_lora.tasks.tables import Part, library

library()
_HUB_FILES = "hf://datasets/"
_READ_ERRORS = (DatasetsError, pa.ArrowException, OSError, ValueError)


def read_saved(folder: Path) -> Part:
    try:
        _refuse_elsewhere_saved(folder)
        with _without_progress():
            return Part.of(datasets.load_from_disk(str(folder), keep_in_memory=True), str(folder))
    except (*_READ_ERRORS, KeyError, TypeError) as error:
        raise DataError(
            f"cannot read {folder}, a folder of datasets.save_to_disk: {cut(error, 300)}; write it again "
            f"with to_parquet('train.parquet')",
            sent="a folder of datasets.save_to_disk cannot be read",
        ) from error


def _refuse_elsewhere_saved(folder: Path) -> None:
    """Raise DataError where a folder of ``save_to_disk`` names files that do not lie in it."""
    state = json.loads((folder / SAVED).read_text(encoding="utf-8"))
    for name in (str(file["filename"]) for file in state["_data_files"]):
        if name in ("", ".", "..") or Path(name).name != name:
            raise DataError(
                f"{folder / SAVED} refers to {name!r}, which is not a file of its folder: write the data "
                f"again with to_parquet('train.parquet')",
                sent="a folder of datasets.save_to_disk names files outside of it",
                key="task.dataset",
            )


def read_hub(source: str, split: str, subset: str | None) -> Part:
    if not is_hub_id(source) or source in LOADERS:  # a loader's name reads whatever lies in this folder
        raise DataError(
            f"{source!r} names no data: expected a local file or folder, a shipped set "
            f"({listing(SHIPPED)}) or a hub id (NAME or OWNER/NAME)"
        )
    name = f"{source}/{subset}" if subset else source
    try:
        with _without_progress():
            builder = datasets.load_dataset_builder(source, subset)
            _refuse_elsewhere(name, builder.config.data_files or {})
            builder.download_and_prepare()
            return Part.of(builder.as_dataset(split=split), f"{name} ({split})")
    except _READ_ERRORS as error:
        raise DataError(
            f"cannot read split {split!r} of {name!r}: {cut(error, 500)}\nIt is neither a local path nor a "
            f"shipped set ({listing(SHIPPED)}){nearest(source, SHIPPED)}, so the hub was tried. Without "
            f"network, "
            "give a local folder, or point HF_HOME to a cache that holds it and set HF_HUB_OFFLINE=1.",
            sent="the data set of the run can neither be found here nor be downloaded",
            key="task.dataset",
        ) from error


def _refuse_elsewhere(name: str, files: Mapping[str, Sequence[str]]) -> None:
    """Raise DataError where a hub data set's description names files that are not its own: its author would
    have files of this machine read."""
    for file in (str(file) for split in files.values() for file in split):
        if not file.startswith(_HUB_FILES):
            raise DataError(
                f"the hub data set {name!r} would read {file!r}, which is none of its files: choose another"
            )


@contextmanager
def _without_progress() -> Iterator[None]:
    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
