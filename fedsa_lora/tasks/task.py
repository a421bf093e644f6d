"""Interface of a task to client and server: a model, a client's data, a loss and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.suggest import cut, listing
from fedsa_lora.tasks.defaults import TaskDefaults

if TYPE_CHECKING:
    from pathlib import Path

    import torch

OBJECT = 112  # bytes of an array beside its values
Batch: TypeAlias = "dict[str, torch.Tensor]"
Features: TypeAlias = "list[NDArray[Any]] | NDArray[Any]"


@dataclass(frozen=True)
class Examples:
    """Encoded examples in memory.

    ``features`` maps a model input's name to one array per example (ragged along the first
    axis for text; of images one array of all); ``labels`` is (n,) int64, -1 where unlabelled;
    ``lengths`` is (n,) int64, the number of tokens, by which batches are bucketed (all ones where
    inputs do not vary). ``packed``: a batch is trained as one row without padding.
    """

    features: Mapping[str, Features]
    labels: NDArray[np.int64]
    lengths: NDArray[np.int64]
    packed: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bytes(self) -> int:
        """Memory that the features take, with the array objects around them."""
        return sum(_bytes(rows) for rows in self.features.values())

    def at(self, indices: NDArray[np.int64]) -> Examples:
        """The examples at ``indices``, in that order."""
        features: dict[str, Features] = {}
        for name, rows in self.features.items():
            features[name] = rows[indices] if isinstance(rows, np.ndarray) else [rows[i] for i in indices]
        return replace(self, features=features, labels=self.labels[indices], lengths=self.lengths[indices])

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """The examples of all parts, of which there is at least one, one part after the other."""
        return cls(
            {name: _joined([part.features[name] for part in parts]) for name in parts[0].features},
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            parts[0].packed,
        )


def _bytes(rows: Features) -> int:
    if isinstance(rows, np.ndarray):
        return rows.nbytes + OBJECT
    return sum(row.nbytes + OBJECT for row in rows)


def _joined(parts: Sequence[Features]) -> Features:
    """The rows of all parts; as one array where those of all parts that have any are."""
    arrays = [rows for rows in parts if len(rows)]
    if arrays and all(isinstance(rows, np.ndarray) for rows in arrays):
        return np.concatenate(arrays)
    return [row for rows in parts for row in rows]


@dataclass(frozen=True)
class ClientData:
    """The three parts of one client's data; all follow the same partition.

    ``attacked``, where others poison their data: test examples of other classes than the attackers' target,
    with their trigger, and called the target.
    """

    train: Examples
    validation: Examples
    test: Examples
    attacked: Examples | None = None

    @property
    def bytes(self) -> int:
        """Memory that all parts take."""
        parts = [self.train, self.validation, self.test, *([self.attacked] if self.attacked else [])]
        return sum(part.bytes for part in parts)

    def held_out(self, part: Literal["test", "validation"]) -> Examples:
        """The part that is measured on: the test part, or validation while rates are chosen."""
        return self.test if part == "test" else self.validation


@dataclass(frozen=True)
class ClientShare:
    """A client's share of the data: counts of examples, and of train examples by class."""

    train: int
    validation: int
    test: int
    classes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class RowCount:
    """Counts of the rows of a split that were read, and of those that no client has, by the reason."""

    split: str
    read: int
    left_out: dict[str, int] = field(default_factory=dict)

    def words(self) -> str:
        """The counts as a phrase."""
        left = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
        return f"{self.read:,} {self.split}" + (f" (left out: {left})" if left else "")


@dataclass(frozen=True)
class FederationData:
    """The clients' shares of the data: shown by ``--dry-run`` and drawn in the report."""

    labels: tuple[str, ...]
    clients: dict[str, ClientShare]
    notes: tuple[str, ...] = ()
    rows: tuple[RowCount, ...] = ()

    def classes_in_words(self) -> str:
        """Number of the classes, and their names."""
        if not self.labels:
            return "none"
        return f"{len(self.labels)}: {listing(cut(label, 40) for label in self.labels)}"

    def check_measurable(self, part: Literal["test", "validation"]) -> None:
        """Raise DataError where no client has examples to be measured on: the run would have no result. Of
        clients with their own data that is not known here."""
        if not self.clients or any(getattr(share, part) for share in self.clients.values()):
            return
        remedy = "name a test split" if part == "test" else "raise federation.validation_examples"
        raise DataError(
            f"no client has {part} examples, so nothing could be measured: lower federation.clients, so that "
            f"each has more rows, or {remedy}"
        )


class Task(TaskDefaults, Protocol):
    """A plug-in: model, data, loss and metrics. ``tasks/text.py`` is the reference implementation; a class
    that derives from none of ours derives from ``TaskDefaults``.

    Client ids are strings; the simulated ones are "0" to "clients - 1".

    ``measures`` declare the numbers of ``evaluate``, each with its range, which way is better and how it is
    shown. The first is the primary one: rows, summary, figures, report and comparisons carry its name, and
    clients are compared by it. A client may report these numbers to the server, and no others:

        measures = (
            Measure("perplexity", (1.0, 1e9), higher_is_better=False),
            Measure("loss", (0.0, 1e9), higher_is_better=False),
        )

    A measure named ``loss`` is the range of the loss of training as well. Names that stand in rows already,
    such as ``round`` or ``majority``, are rejected before anything runs.
    """

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures, of which the first is the primary one: a class variable, or by the settings."""
        ...

    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the model's outputs; none where there are no classes."""
        ...

    def build_model(self, *, seed: int, empty: bool = False) -> torch.nn.Module:
        """The backbone with its head, without adapters.

        ``empty`` builds it on the meta device, without reading a weight: the server needs
        names and shapes only. Weights that the checkpoint lacks are drawn from ``seed``.
        """
        ...

    def describe(self) -> FederationData:
        """Counts each client's examples of each class."""
        ...

    def client_labels(self, client: str) -> tuple[str, ...]:
        """Class names in the order of this client's outputs, where labels are permuted by client."""
        ...

    def load_client(self, client: str) -> ClientData:
        """The data of one client. Raises DataError when the client is unknown or empty."""
        ...

    def collate(self, examples: Examples, indices: NDArray[np.int64]) -> Batch:
        """A batch padded to its own longest example, with ``labels``."""
        ...

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean loss of a batch, a scalar."""
        ...

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Predictions that metrics are made of, (batch, ...) by example: for classes the logits (batch,
        classes)."""
        ...

    def evaluate(self, predictions: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """Metrics from the predictions of n examples (n, ...) and their labels (n,), by the name of
        the measure; the primary one, and the loss where it is a measure, must be among them."""
        ...


@runtime_checkable
class FileReading(Protocol):
    """A task whose rows are in files, of which a node may have its own."""

    def at(self, path: Path) -> Task:
        """The same task on the rows of a file or a folder."""
        ...


@runtime_checkable
class Forgettable(Protocol):
    """A task of text answers with a forget set among the train examples of some clients, the ``targets``."""

    @property
    def targets(self) -> Sequence[str | int]:
        """The clients that hold such examples."""
        ...

    def to_forget(self, examples: Examples) -> NDArray[np.bool_]:
        """True, (n,), of each example that is to be forgotten."""
        ...

    def refused(self, examples: Examples) -> Examples:
        """The same prompts in the same order, each answered by a refusal."""
        ...


@runtime_checkable
class Referring(Protocol):
    """A task that compares the model with its state at the start of the run."""

    def referred(self, examples: Examples, predictions: NDArray[np.float32]) -> Examples:
        """The same examples in the same order, with what is needed of the ``predictions`` (n, ...) that the
        model made of them as the run began."""
        ...


@runtime_checkable
class Augmenting(Protocol):
    """A task that augments its train examples in each round, and never its test examples."""

    def augmented(self, examples: Examples, rng: np.random.Generator) -> Examples:
        """The same examples in the same order, each changed by what is drawn from ``rng``; the very same
        object where nothing is to be changed."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A task whose loss is a mean over other terms than examples."""

    def terms(self, examples: Examples, indices: NDArray[np.int64]) -> int:
        """The number of terms that the loss of the examples at ``indices`` is the mean of, such as the tokens
        of their answers."""
        ...


def measured(task: Task, predictions: NDArray[np.float32], labels: NDArray[Any]) -> dict[str, float]:
    """The numbers of ``task.evaluate`` that the task declares, in its order; others stay where they are.

    Raises ConfigError for a task that declares a number which its ``evaluate`` does not return.
    """
    numbers = task.evaluate(predictions, labels)
    declared = [measure.name for measure in task.measures]
    if missing := [name for name in declared if name not in numbers]:
        raise ConfigError(
            f"task: {type(task).__name__} declares the measures {listing(declared)}, and its evaluate "
            f"returns no {listing(missing)}, only {listing(sorted(numbers)) or 'nothing'}: correct one of "
            f"the two",
            sent="its evaluate does not return every measure that the task declares",
            key="task",
        )
    return {name: float(numbers[name]) for name in declared}
