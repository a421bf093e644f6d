"""Errors a user can act on: each message names the culprit, what was expected and what to do."""

from __future__ import annotations

import re
from typing import ClassVar

_KEY = re.compile(r"[a-z_]+(\.[a-z_]+)*")


def printable(text: str, but: str = "") -> str:
    """A text that somebody else may have written, without what would command a terminal or turn the direction
    of what it writes: a blank in the place of each character that is neither printable nor one of ``but``."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in but else " " for letter in text)


class FedSAError(Exception):
    """Base of every error that this package raises on purpose.

    The message is for the machine where it is raised, and may quote a client's data there; it is made
    ``printable``, as it may also quote what a stranger wrote. A client sends ``sendable`` in its place, which
    is made of nothing but ``sent``, a sentence that stands in the source, ``key``, the key of the config at
    fault, and ``counts``, numbers by what they count. Raises TypeError for a count that is not a whole
    number, and ValueError for an unknown key. ``faults`` are the parts of a message that lists several.
    """

    meaning: ClassVar[str] = "it failed"  # what is sent of an error without its own sentence
    is_open: ClassVar[bool] = False  # whether its message quotes messages, tensors and settings alone

    def __init__(self, message: str, *, sent: str = "", key: str = "", **counts: int) -> None:
        super().__init__(printable(message, "\n"))
        if key and not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a config key")
        if wrong := [name for name, count in counts.items() if type(count) is not int]:
            raise TypeError(f"{wrong[0]} is not a whole number")
        self.sent, self.key, self.counts = sent, key, counts
        self.faults: tuple[str, ...] = (str(self),)

    @property
    def sendable(self) -> str:
        """The part of it that may leave the machine."""
        if self.is_open:
            return str(self)
        facts = [self.key] if self.key else []
        facts += [f"{count:,} {name.replace('_', ' ')}" for name, count in self.counts.items()]
        return (self.sent or self.meaning) + (f" ({', '.join(facts)})" if facts else "")


class ConfigError(FedSAError):
    """The configuration cannot be run; the message lists every fault found."""

    meaning = "the run does not fit this node"


class DataError(FedSAError):
    """A data set, a column, a label or a client's share of the data is unusable."""

    meaning = "its data cannot be used as the run requires"


class ModelError(FedSAError):
    """A backbone cannot be loaded or does not have the layers that the config names."""

    meaning = "the model cannot be loaded, or lacks what the run requires"


class LayoutError(FedSAError):
    """Arrays do not have exactly the names, shapes or dtype of a layout."""

    is_open = True


class SplitError(FedSAError):
    """A split is not disjoint and complete, or would share what a client forbids."""

    is_open = True


class WireError(FedSAError):
    """A message is malformed, or belongs to another round, client or layout."""

    is_open = True


class LeakError(FedSAError):
    """A message about to leave a client holds values that must stay on it."""

    is_open = True


class StoreError(FedSAError):
    """A client's state on disk is unreadable, incomplete or of another experiment."""

    meaning = "what it stored between rounds cannot be used"


class TrainingError(FedSAError):
    """Local training cannot continue, for example because the loss is not finite."""

    is_open = True


class StoppedError(FedSAError):
    """A signal or `flwr stop` ended what was under way; the message says how to resume. ``code``: 128 and the
    number of the signal."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RunError(FedSAError):
    """A run failed, or a run directory cannot be used."""
