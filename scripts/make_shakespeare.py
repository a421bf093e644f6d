"""Make the shipped set ``shakespeare`` of the tiny Shakespeare file: the ten speakers who say most.

    python scripts/make_shakespeare.py --data input.txt --to fedsa_lora/data/shakespeare

The file is https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt. A row
is a speech, a long one in pieces; the first four fifths of what a speaker says are train rows, the rest is
the test part. Made again, the rows are the same.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SPEAKERS = 10
LONGEST = 400  # characters of a row: with stories260k about 250 tokens
TRAIN = 0.8  # of a speaker's characters


def speeches(text: str) -> dict[str, list[str]]:
    """The speeches of each speaker in their order, the speaker of most characters first."""
    found: dict[str, list[str]] = {}
    for block in text.split("\n\n"):
        speaker, _, words = block.strip().partition(":\n")
        if words:
            found.setdefault(speaker, []).append(words)
    return dict(sorted(found.items(), key=lambda item: -sum(map(len, item[1]))))


def pieces(speech: str) -> Iterator[str]:
    """A speech in parts of whole lines, each as long as it may be."""
    part = ""
    for line in speech.split("\n"):
        if part and len(part) + 1 + len(line) > LONGEST:
            yield part
            part = ""
        part = f"{part}\n{line}" if part else line
    yield part


def parted(rows: list[str]) -> tuple[list[str], list[str]]:
    """The first rows of a speaker, which hold ``TRAIN`` of the characters, and the others."""
    whole, said = sum(map(len, rows)), 0
    for at, row in enumerate(rows):
        said += len(row)
        if said >= TRAIN * whole:
            return rows[: at + 1], rows[at + 1 :]
    raise ValueError("a speaker without a word")


def make(source: Path, to: Path) -> None:
    """Write train.parquet and test.parquet."""
    splits: dict[str, dict[str, list[str]]] = {
        name: {"speaker": [], "text": []} for name in ("train", "test")
    }
    found = speeches(source.read_text(encoding="utf-8"))
    for speaker in sorted(list(found)[:SPEAKERS]):
        rows = [piece for speech in found[speaker] for piece in pieces(speech)]
        for split, part in zip(splits.values(), parted(rows), strict=True):
            split["speaker"] += [speaker] * len(part)
            split["text"] += part
    to.mkdir(parents=True, exist_ok=True)
    for name, columns in splits.items():
        pq.write_table(pa.table(columns), to / f"{name}.parquet", compression="zstd", compression_level=19)
        print(f"{name}: {len(columns['text'])} rows")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="input.txt of tiny Shakespeare")
    parser.add_argument("--to", type=Path, required=True, help="folder for train.parquet and test.parquet")
    arguments = parser.parse_args()
    make(arguments.data, arguments.to)


if __name__ == "__main__":
    main()
