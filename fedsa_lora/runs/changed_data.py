"""Data that changed since a run was made on them: other rows then belong to other clients, and test rows may
have become train rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsa_lora.errors import DataError, RunError
from fedsa_lora.runs.reading import primary_in, read_json
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.fingerprint import CLASSES, Fingerprint, Part, fingerprint_of, of_classes

DATA = "data.json"  # in a run directory: where its rows came from, and their number and digest by part
UNKNOWN = "was made by a version that recorded no digest of the data, so data changes cannot be detected"


def recorded(run_dir: Path) -> Fingerprint | None:
    """Reads a run's record of its data; None of a run that could not, or was made before runs did."""
    path = run_dir / DATA
    if not path.is_file():
        return None
    content = read_json(path, ["source", "parts"])
    try:
        parts = {name: Part(**part) for name, part in content["parts"].items()}
    except (TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}): restore it from a copy, or delete it") from None
    return Fingerprint(content["source"], parts)


def check_measure(run_dir: Path, config: RunConfig) -> None:
    """Raise RunError where the rows of a run are in another measure than those to come would be."""
    then, now = primary_in(run_dir).name, config.task.measures[0].name
    if then != now:
        raise RunError(
            f"{run_dir} was measured by {then}, and its task is now measured by {now}: run it again, in "
            f"another run.dir"
        )


def check_data(run_dir: Path, config: RunConfig, allow: bool = False) -> str:
    """Compare the data of a config with those that a run was made on.

    Returns what the user is to know of it, nothing where the data are the same or are not known here, as
    where each node has its own. Raises DataError where they changed, unless the user has said that they may
    (``allow``); other classes are never allowed.
    """
    now = None if config.federation.own else fingerprint_of(config.task)
    if now is None:
        return ""
    then = recorded(run_dir)
    if then is None:
        return f"{run_dir} {UNKNOWN}"
    changed = then.differences(now)
    if not changed:
        return ""
    check_classes(run_dir, config)
    if allow:
        return f"{now.source} changed since {run_dir} was made on it, which is allowed: {'; '.join(changed)}"
    raise DataError(
        _told(run_dir, now.source, changed) + "\nClients may now hold other rows, and test rows may have "
        "become train rows. Restore the data, or make a new run; --allow-changed-data continues with "
        "the changed data"
    )


def check_classes(run_dir: Path, config: RunConfig) -> None:
    """Raise DataError where the classes are others than those that a run was made on, or in another order: a
    model's outputs would be given wrong names. Reads no more of the data than the task needs to name them."""
    then = recorded(run_dir)
    if then is None or config.federation.own:
        return
    classes = {CLASSES: then.parts.get(CLASSES, of_classes(()))}
    now = Fingerprint(then.source, {CLASSES: of_classes(config.task.labels())})
    if changed := Fingerprint(then.source, classes).differences(now):
        told = _told(run_dir, then.source, changed)
        raise DataError(
            f"{told}\nThe model's outputs would get wrong class names. Restore the data, or make a new run"
        )


def _told(run_dir: Path, source: str, changed: Sequence[str]) -> str:
    lines = "".join(f"\n  - {line}" for line in changed)
    return f"{source} differs from the data of {run_dir}; by part, number of rows (and digest):{lines}"
