"""Errors a user can act on: each message names the culprit, what was expected and what to do."""

import re

_OPEN, _CLOSE = "\x02", "\x03"  # around what is private in a text; no value that was quoted holds them
_MARKS = dict.fromkeys(map(ord, (_OPEN, _CLOSE)))
_PRIVATE = re.compile(f"{_OPEN}.*?{_CLOSE}", re.DOTALL)


def private(text: str) -> str:
    """The part of an error's text that holds a client's data: shown on the client's machine, not sent."""
    return f"{_OPEN}{text.translate(_MARKS)}{_CLOSE}" if text else ""


class FedSAError(Exception):
    """Base of every error that this package raises on purpose."""

    def __str__(self) -> str:
        return super().__str__().translate(_MARKS)

    @property
    def sendable(self) -> str:
        """The text without what is ``private`` in it, as it may leave the machine."""
        return _PRIVATE.sub("[not sent]", super().__str__())


class ConfigError(FedSAError):
    """The configuration cannot be run; the message lists every fault found."""


class DataError(FedSAError):
    """A data set, a column, a label or a client's share of the data is unusable."""


class ModelError(FedSAError):
    """A backbone cannot be loaded or does not have the layers that the config names."""


class LayoutError(FedSAError):
    """Arrays do not have exactly the names, shapes or dtype of a layout."""


class SplitError(FedSAError):
    """A split is not disjoint and complete, or would share what a client forbids."""


class WireError(FedSAError):
    """A message is malformed, or belongs to another round, client or layout."""


class LeakError(FedSAError):
    """A message about to leave a client holds values that must stay on it."""


class StoreError(FedSAError):
    """A client's state on disk is unreadable, incomplete or of another experiment."""


class TrainingError(FedSAError):
    """Local training cannot go on, for example because the loss is not finite."""


class StoppedError(FedSAError):
    """A signal or `flwr stop` ended what was under way; the message says how to go on. ``code``: 128 and the
    number of the signal."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class RunError(FedSAError):
    """A run failed, or a run directory cannot be used."""
