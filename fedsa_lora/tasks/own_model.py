"""Tasks of users who bring a model and data of each client as Python objects: the common part of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, DataError, FedSAError, ModelError
from fedsa_lora.exchange.measure import CLASSES, LARGEST, Measure
from fedsa_lora.seeds import torch_seed
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.classification import of_classes
from fedsa_lora.tasks.datasets_of_torch import Source, named, outputs_of
from fedsa_lora.tasks.heads import Head, assign_head
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.named_functions import function_of, is_name
from fedsa_lora.tasks.partition import PartitionSettings, own_rows
from fedsa_lora.tasks.task import Batch, ClientData, ClientShare, Examples, FederationData

HELD = 32  # clients whose data sets are kept
TRAIN, TEST = 0, 1  # the parts of a client's data
HELD_OUT_LOSS = Measure("held_out_loss", (-LARGEST, LARGEST), higher_is_better=False)


@dataclass(frozen=True, kw_only=True)
class OwnModelTask(ABC):
    """Implements ``Task`` over a model, and a train and a test set of each client.

    ``head`` names the modules that are trained whole, as PEFT's ``modules_to_save`` does; they start as the
    model has them. ``classes`` are the classes in the order of the model's outputs: without them the loss on
    held-out examples is measured, unless ``evaluate_function`` (``MODULE:FUNCTION``) makes the numbers that
    ``measured`` declares, from outputs (n, ...) and labels (n,). Raises ConfigError for names that are none.
    """

    model: ModelSettings
    partition: PartitionSettings = field(default_factory=PartitionSettings)
    seed: int = 0
    head: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    measured: list[Measure] = field(default_factory=list)
    evaluate_function: str = ""

    by_client: ClassVar[bool] = True  # each machine is asked for its own clients' data
    measures_itself: ClassVar[bool] = False  # its user's objects may return what is measured

    def __post_init__(self) -> None:
        needed = bool(self.measured) and not self.measures_itself
        if needed != bool(self.evaluate_function):
            raise ConfigError("measured declares what evaluate_function returns: give both, or neither")
        if twice := sorted({name for name in self.classes if self.classes.count(name) > 1}):
            raise ConfigError(
                f"classes names {listing(twice)} more than once: expected a different name for each output"
            )
        for known in fields(self):
            name = getattr(self, known.name)
            needed = name or known.default is MISSING
            if known.name.endswith("_function") and needed and not is_name(name):
                raise ConfigError(f"{known.name} is {name!r}: expected MODULE:FUNCTION")

    @abstractmethod
    def own_model(self) -> torch.nn.Module:
        """The model as its user makes it."""

    @abstractmethod
    def model_code(self) -> tuple[str, str]:
        """A line of Python that imports what the user's model is made by, and an expression that makes it."""

    @abstractmethod
    def own_data(self, client: int | str) -> Any:
        """A client's data set or loader, or a tuple of one to train on and one to be measured on."""

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Mean loss of a batch, a scalar."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures, of which the first is the primary one."""
        if self.measured:
            return tuple(self.measured)
        return CLASSES if self.classes else (HELD_OUT_LOSS,)

    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the model's outputs; none where there are no classes."""
        return tuple(self.classes)

    def client_labels(self, client: str) -> tuple[str, ...]:
        """Class names in the order of this client's outputs."""
        return self.labels()

    def build_model(self, *, seed: int, empty: bool = False) -> torch.nn.Module:
        """The user's model, drawn from ``seed`` where it is drawn; ``empty``: on the meta device, once it was
        made. Raises ModelError where it is none, or has no module that ``head`` names."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "model"))
            model = self.own_model()
        if not isinstance(model, torch.nn.Module):
            raise ModelError(f"the model function returns a {type(model).__name__}: expected a torch Module")
        names = [name for name, _ in model.named_modules() if name]
        modules = [name for name in names if any(f".{name}".endswith(f".{end}") for end in self.head)]
        if lost := [end for end in self.head if not any(f".{name}".endswith(f".{end}") for name in modules)]:
            raise ModelError(
                f"head: {type(model).__name__} has no module {listing(lost)}; expected some of "
                f"{listing(names)}"
            )
        if inner := [name for name in modules if any(name.startswith(f"{other}.") for other in modules)]:
            raise ModelError(f"head: {listing(inner)} is within another module of the head; name that alone")
        head = Head(tuple(modules))
        kept = frozenset(name for name, _ in model.named_parameters() if head.holds(name))
        assign_head(model, Head(head.modules, kept))
        return model.to("meta") if empty else model

    def describe(self) -> FederationData:
        """Counts each client's examples; nothing is known here of clients whose data only they have."""
        if self.partition.own:
            return FederationData(
                self.labels(), {}, ("every client has its own data, unknown to the server",)
            )
        names = [str(number) for number in range(self.partition.clients)]
        return FederationData(self.labels(), {name: self._share(self.load_client(name)) for name in names})

    def load_client(self, client: str) -> ClientData:
        """The places of a client's examples. Raises DataError where its data cannot be had or used."""
        train, test = self._sources(client)
        labels = self._checked(client, train.labels())
        test_labels = None if test is None else self._checked(client, test.labels())
        rows = own_rows(self.partition, self.seed, client, labels, test_labels)
        if not len(rows.train):
            raise DataError(f"client {client!r} has no train examples", sent="it has no train examples")
        tested = labels if test_labels is None else test_labels
        if client not in self._names:
            self._names.append(client)
        number = self._names.index(client)
        return ClientData(
            train=_examples(number, TRAIN, rows.train, labels),
            validation=_examples(number, TRAIN, rows.validation, labels),
            test=_examples(number, TRAIN if test is None else TEST, rows.test, tested),
        )

    def collate(self, examples: Examples, indices: NDArray[np.int64]) -> Batch:
        """The items themselves, read now, as the collate function of their loader makes a batch of them."""
        places = np.asarray(examples.features["place"])[indices].tolist()
        sources = [self._sources(self._names[client])[part] for client, part, _ in places]
        items = [source.items[row] for source, (_, _, row) in zip(sources, places, strict=True)]
        return named(sources[0].collate(items))

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Outputs (batch, ...) where they are judged, else the loss of each example (batch,)."""
        if self.classes or self.measured:
            return outputs_of(model, batch)
        count = len(next(iter(batch.values())))
        each = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(count)]
        return torch.stack([self.loss(model, example).detach() for example in each])

    def evaluate(self, predictions: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """The numbers that ``measures`` declares."""
        if self.evaluate_function:
            return dict(function_of(self.evaluate_function)(predictions, labels))
        if self.classes:
            return of_classes(predictions, labels, len(self.classes))
        return {HELD_OUT_LOSS.name: float(predictions.mean(dtype=np.float64))}

    @cached_property
    def _names(self) -> list[str]:
        """The clients that were loaded, by which places of examples name them."""
        return []

    @cached_property
    def _sources(self) -> Any:
        """The data sets of a client: to train on, and to be measured on where there are others for that."""
        return lru_cache(maxsize=HELD)(self._read)

    def _read(self, client: str) -> tuple[Source, Source | None]:
        try:
            given = self.own_data(int(client) if client.isdigit() else client)
        except FedSAError:
            raise
        except Exception as error:  # of whatever kind a user's function raises
            raise DataError(
                f"the data of client {client!r} cannot be loaded: {type(error).__name__}: {error}",
                sent="its data function raises an error",
            ) from error
        train, test = given if isinstance(given, tuple) else (given, None)
        return Source.of(train), None if test is None else Source.of(test)

    def _checked(self, client: str, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The labels, of which each is a class where there are classes."""
        wrong = labels[(labels < 0) | (labels >= len(self.classes))]
        if self.classes and len(wrong):
            raise DataError(
                f"client {client!r} has the label {wrong[0]}: expected whole numbers from 0 to "
                f"{len(self.classes) - 1}, for {len(self.classes)} classes (-1 stands for a value that is "
                f"not a whole number)",
                sent="its data have a label that is none of the classes",
            )
        return labels

    def _share(self, data: ClientData) -> ClientShare:
        sizes = (len(data.train), len(data.validation), len(data.test))
        if not self.classes:
            return ClientShare(*sizes)
        return ClientShare(*sizes, np.bincount(data.train.labels, minlength=len(self.classes)).tolist())


def _examples(client: int, part: int, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Examples:
    """The places (n, 3) of examples: the number of the client, the part, and the row there."""
    places = np.column_stack([np.full_like(rows, client), np.full_like(rows, part), rows])
    return Examples({"place": places}, labels[rows], np.ones(len(rows), np.int64))
