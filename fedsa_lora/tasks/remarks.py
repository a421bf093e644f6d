"""Remarks on rows that were read, which a user should see."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.suggest import cut
from fedsa_lora.tasks.tables import Table, names
from fedsa_lora.tasks.values import Words


def rewritten(table: Table, column: str, found: Words) -> list[str]:
    """A remark on values that are read in another form than the file's."""
    changed = found.changed()
    if changed is None:
        return []
    raw, word, count = changed
    rows = f"{count} rows hold" if count > 1 else "1 row holds"
    return [f"{table.name}, column {column!r}: {cut(raw)!r} is read as {cut(word)!r} ({rows} such values)"]


def on_classes(table: Table, labels: NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    """Remarks on classes with one row or none, and on names that differ in upper and lower case only."""
    counts = np.bincount(labels, minlength=len(classes))
    notes = [
        f"{table.name}: {fault} {names(np.array(classes)[counts == count])}"
        for count, fault in enumerate(("classes without a row:", "classes with a single row:"))
        if (counts == count).any()
    ]
    folded: dict[str, list[str]] = {}
    for label in classes:
        folded.setdefault(label.casefold(), []).append(label)
    alike = [" and ".join(map(repr, same)) for same in folded.values() if len(same) > 1]
    if alike:
        notes.append(f"{table.name}: classes that differ in upper and lower case only: {names(alike)}")
    return notes
