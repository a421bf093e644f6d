"""One data file: its kind by the ending of its name, its characters, and what is none of them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import cut, listing
from fedsa_lora.tasks.delimited import read_delimited
from fedsa_lora.tasks.npz import read_npz
from fedsa_lora.tasks.records import read_records
from fedsa_lora.tasks.tables import Part, class_names, library

SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # what datasets.save_to_disk writes into a folder
FORMATS = (".parquet", ".csv", ".tsv", ".jsonl", ".json", ".npz")
PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z")
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_POINTER = b"version https://git-lfs.github.com/spec"


def is_data(path: Path) -> bool:
    """A file that ``read_file`` reads, by its name."""
    return path.suffix.lower() in FORMATS and not path.name.startswith(".")


def read_file(path: Path) -> Part:
    """The rows of a parquet, CSV, TSV, JSON Lines, JSON or npz file. Raises DataError with the remedy."""
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise DataError(
            f"{path} is not read: {_other_kind(kind)}", sent="a data file has a format that is not supported"
        )
    with _explained(path):
        with open(path, "rb") as file:
            beginning = file.read(len(_POINTER))
        if not beginning:
            raise DataError(f"{path} is empty", sent="a data file is empty")
        if beginning == _POINTER:
            raise DataError(
                f"{path} is a Git LFS pointer, not the data: run 'git lfs pull' in its folder, or "
                "download it",
                sent="a data file is a Git LFS pointer, not the data",
            )
        if kind == ".parquet":
            return _parquet(path)
        if kind == ".npz":
            return read_npz(path)
        text = decoded(path.read_bytes(), str(path))
    if kind in (".csv", ".tsv"):
        return read_delimited(text, str(path), "\t" if kind == ".tsv" else ",")
    return read_records(text, str(path))


def decoded(data: bytes, name: str) -> str:
    """The text of a UTF-8 file, or of a UTF-16 or UTF-32 file that begins with its mark.

    Raises DataError that names the line and the byte that is no such text.
    """
    encoding = next((known for mark, known in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        around = data[max(error.start - 20, 0) : error.start + 20].decode("cp1252", "replace")
        raise DataError(
            f"{name}, line {line}: byte 0x{data[error.start]:02x} is not {encoding.upper()}; save the file "
            "as UTF-8 (in a spreadsheet 'CSV UTF-8'). Were it Windows-1252, it would read "
            f"{around!r}",
            sent="a data file is not UTF-8 text",
        ) from None
    if (position := text.find("\0")) >= 0:
        line = text.count("\n", 0, position) + 1
        raise DataError(
            f"{name}, line {line}: a NUL byte, so it is not text, or UTF-16 without a byte order mark; "
            f"save it as UTF-8",
            sent="a data file is not text: it holds NUL bytes",
        )
    return text


def _parquet(path: Path) -> Part:
    file = pq.ParquetFile(path)
    schema = file.schema_arrow

    def read(column: str) -> pa.ChunkedArray:
        with _explained(path):
            return file.read(columns=[column])[column]

    classes = {}
    if b"huggingface" in (schema.metadata or {}):
        classes = class_names(library().Features.from_arrow_schema(schema))
    return Part(str(path), schema.names, file.metadata.num_rows, read, classes)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system or Arrow raises into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = cut(error.strerror if isinstance(error, OSError) and error.strerror else error, 300)
        raise DataError(
            f"cannot read {path} as {path.suffix.lower()[1:]}: {reason}; make or download it again",
            sent="a data file cannot be read",
        ) from error


def _other_kind(kind: str) -> str:
    if kind in PACKED:
        return f"unpack it first; expected {listing(FORMATS)}"
    if kind in SPREADSHEETS:
        return "save the spreadsheet as 'CSV UTF-8'"
    return f"expected a name that ends in {listing(FORMATS)}, not {kind!r}"
