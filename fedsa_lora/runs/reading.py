"""Read what a run wrote: JSON, JSON lines, and the whole run directory as one record."""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedsa_lora.config.changes import changes_of
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.measure import CLASSES, Measure

Row = dict[str, Any]
PARTITION = "partition.json"  # the clients' shares, and the measures of the task
APP = "app"  # the code that ran, with its config files in "conf"
REPORT = "report.html"  # the page of a run, written when it ends
EVALUATION = "evaluation.json"  # what ``fedsa-lora evaluate`` measured after the run
UNLEARNING = "unlearning.json"  # what it measured with ``--unlearning``
AFTERWARDS = (EVALUATION, UNLEARNING)


@dataclass(frozen=True)
class RunRecord:
    """Everything a run directory records; what a run did not live to write is empty. ``afterwards`` are the
    measurements of a finished run that are there, by the name of their file."""

    directory: Path
    config: str
    status: Row
    environment: Row
    partition: Row
    rounds: list[Row]
    clients: list[Row]
    summary: Row
    afterwards: dict[str, Row] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The directory, how the run ended, and the primary measure after it, in one line."""
        facts = [str(self.status.get("state", "not begun")), f"{len(self.rounds)} rounds"]
        facts.append(f"{len({row['client'] for row in self.clients})} clients")
        measured = self.summary.get("personalised") or {}
        if "mean" in measured:
            facts.append(f"{self.primary.words} {measured['mean']:.3f}")
        return f"{type(self).__name__}({self.directory}: {', '.join(facts)})"

    @property
    def primary(self) -> Measure:
        """The measure that its clients are compared by."""
        return primary_of(self.partition)

    @property
    def evaluation(self) -> Row:
        """Measurements of ``fedsa-lora evaluate`` after the run; empty without any."""
        return self.afterwards.get(EVALUATION, {})

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All measures of its task, the primary one first."""
        return measures_of(self.partition)

    @property
    def changes(self) -> dict[str, str]:
        """Changes of the experiment by its command, by key."""
        return changes_of(self.environment.get("command", ""))


def primary_of(partition: Row) -> Measure:
    """The primary measure, by what a run recorded of its task."""
    return measures_of(partition)[0]


def measures_of(partition: Row) -> tuple[Measure, ...]:
    """The measures, primary first, by what a run recorded of its task; those of classes of a run of a version
    that recorded none. Raises RunError for what is no record of a measure."""
    declared = partition.get("measures", [])
    try:
        return tuple(map(Measure.read, declared)) if declared else CLASSES
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{PARTITION}: its measures cannot be read ({error!r}); was it written by another version?"
        ) from error


def primary_in(run_dir: Path) -> Measure:
    """The primary measure of the run in a directory."""
    return primary_of(_json_if_there(run_dir / PARTITION))


def read_json(path: Path, required: Collection[str] = ()) -> Row:
    """Read one JSON object that has at least the `required` keys."""
    return _parse(_read(path), f"{path}", required)


def read_jsonl(path: Path, required: Collection[str] = ()) -> list[Row]:
    """Read one JSON object per line.

    A last line without its line break is what a stopped process leaves behind: it is dropped when it
    cannot be parsed. Any other bad line is an error, because it means lost results.
    """
    *whole, last = _read(path).split(b"\n")
    rows = [_parse(line, f"{path}, line {n}", required) for n, line in enumerate(whole, 1) if line.strip()]
    if last.strip() and _is_json(last):
        rows.append(_parse(last, f"{path}, line {len(whole) + 1}", required))
    return rows


class Growing:
    """A file of JSON lines that another process appends to: each row is read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode, self._read = 0, 0

    def replaced(self) -> bool:
        """True where what was read is gone: a resumed run writes its rows anew, a full log is put aside."""
        found = self._stat()
        return self._read > 0 and (found is None or found.st_ino != self._inode or found.st_size < self._read)

    def rows(self) -> list[Row]:
        """The rows since the last call; a line that is not whole yet is left for the next."""
        found = self._stat()
        if found is None or found.st_size == self._read:
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
        self._inode, self._read = found.st_ino, self._read + len(whole) + bool(whole)
        return [_parse(line, f"{self.path}", ()) for line in whole.split(b"\n") if line.strip()]

    def _stat(self) -> os.stat_result | None:
        return self.path.stat() if self.path.is_file() else None


def holds_run(path: Path, run: str = "") -> bool:
    """True where a run has begun in a directory; one that ended while Flower started has not. Where ``run``
    names one, as clients' stores know it, only that run counts."""
    if not (path / "config.yaml").exists():
        return False
    return not run or _run_in(path) == run


def _run_in(path: Path) -> str:
    """The run of a directory as clients' stores know it; empty without one. Asked for with each message and
    each row, so the file is read once."""
    environment = path / "environment.json"
    try:
        found = environment.stat()
    except OSError:
        return ""
    return _run_of(environment, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _run_of(environment: Path, *identity: int) -> str:
    return str(read_json(environment).get("run", ""))


def read_run(run_dir: Path) -> RunRecord:
    """Read a run directory, of which a run that failed early has only `config.yaml` and `status.json`."""
    if not run_dir.is_dir():
        raise RunError(f"{run_dir} is not a directory; give the run directory that `fedsa-lora run` printed")
    return RunRecord(
        directory=run_dir,
        config=_read(run_dir / "config.yaml").decode("utf-8", errors="replace"),
        status=read_json(run_dir / "status.json", required=["state"]),
        environment=_json_if_there(run_dir / "environment.json"),
        partition=_json_if_there(run_dir / PARTITION),
        rounds=_jsonl_if_there(run_dir / "rounds.jsonl", ["round"]),
        clients=_jsonl_if_there(run_dir / "clients.jsonl", ["round", "phase", "client"]),
        summary=_json_if_there(run_dir / "summary.json"),
        afterwards={name: read_json(run_dir / name) for name in AFTERWARDS if (run_dir / name).exists()},
    )


def _json_if_there(path: Path) -> Row:
    return read_json(path) if path.exists() else {}


def _jsonl_if_there(path: Path, required: Collection[str]) -> list[Row]:
    return read_jsonl(path, required) if path.exists() else []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path} is missing; is {path.parent} the directory of a run?") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; check its permissions") from error


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _whole(value: Any) -> Any:
    """The same content with a question mark for each half of a pair of surrogates."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_whole(part) for part in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(part) for key, part in value.items()}
    return value


def _parse(text: bytes, place: str, required: Collection[str]) -> Row:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RunError(f"{place}: not valid JSON ({error}); repair it or run again") from error
    if not isinstance(value, dict):
        raise RunError(
            f"{place}: expected a JSON object, found {type(value).__name__}; repair it or run again"
        )
    if b"\\ud" in text.lower():  # it may hold half of a pair of surrogates, of which no file can be written
        value = dict(_whole(value))
    if missing := sorted(set(required) - value.keys()):
        raise RunError(f"{place}: missing {', '.join(missing)}; was it written by another version?")
    return value
