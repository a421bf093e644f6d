"""The common part of all tasks; a new one reads rows, encodes them, collates batches and says what is
measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import DataError
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.defaults import TaskDefaults
from fedsa_lora.tasks.fingerprint import Fingerprint, of_clients, of_rows
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.partition import (
    ClientRows,
    FederationSplit,
    PartitionSettings,
    own_rows,
    split_federation,
)
from fedsa_lora.tasks.partitioners import GROUP, LABEL
from fedsa_lora.tasks.rows import Inputs, LabelledData, Rows
from fedsa_lora.tasks.task import Batch, ClientData, ClientShare, Examples, FederationData, RowCount

if TYPE_CHECKING:
    import datasets
    import torch

    from fedsa_lora.tasks.backbone import Start


@dataclass(frozen=True, kw_only=True)
class DividedTask(TaskDefaults, ABC):
    """Implements the data side of ``Task`` over ``read``, ``encode`` and ``collate``.

    The rows and the partition are computed when first needed and then kept.
    """

    model: ModelSettings
    partition: PartitionSettings = field(default_factory=PartitionSettings)
    seed: int = 0

    builds_head: ClassVar[bool] = False  # ``auto_class`` puts a head of the classes behind the backbone

    @property
    def auto_class(self) -> Any:
        """The class of transformers that builds the model; None where ``build_model`` is the task's own."""
        return None

    @abstractmethod
    def read(self) -> LabelledData:
        """All rows, not encoded yet."""

    def places(self) -> list[Path]:
        """The files and folders that hold the rows, which are not read; none where rows come with a library
        or from the hub. Raises DataError where one is not there."""
        return []

    @abstractmethod
    def encode(self, inputs: datasets.Dataset, labels: NDArray[np.int64]) -> Examples:
        """The model's inputs for n rows with labels (n,)."""

    @abstractmethod
    def collate(self, examples: Examples, indices: NDArray[np.int64]) -> Batch:
        """A batch of the examples at ``indices``, with ``labels``."""

    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the model's outputs; none where there are no classes."""
        return self.data.classes

    def build_model(self, *, seed: int, empty: bool = False) -> torch.nn.Module:
        """The backbone with its head; on the meta device and without weights when ``empty``."""
        from fedsa_lora.tasks.backbone import build_backbone

        return build_backbone(self.auto_class, self.model, self.labels(), seed=seed, empty=empty)

    def inspect(self) -> tuple[str, ...]:
        """Remarks on how inputs are read, shown before a run. Raises DataError for one that cannot be."""
        return ()

    def check_model(self, model: torch.nn.Module, start: Start) -> None:
        """Raise ModelError or ConfigError where an empty ``model`` of ours does not go with the inputs."""
        from fedsa_lora.tasks.inspection import check_batch

        if not self.partition.own:
            check_batch(self, model)

    def batch_remedy(self) -> str:
        """A line on the setting by which the model could read the batches, where it cannot."""
        return ""

    def describe(self) -> FederationData:
        """Counts each client's examples; classes are the true ones, whatever a client calls them. Of clients
        with their own data nothing is known here."""
        labels = self.labels()
        if self.partition.own:
            return FederationData(labels, {}, ("every client has its own data, unknown to the server",))
        shares = {
            client: ClientShare(
                train=len(rows.train),
                validation=len(rows.validation),
                test=len(rows.test),
                classes=self._class_counts(rows.train) if labels else [],
            )
            for client, rows in self.split.clients.items()
        }
        notes = tuple(note for rows in (self.data.train, self.data.test) if rows for note in rows.notes)
        return FederationData(labels, shares, (*notes, *self.split.notes), self._counts())

    def client_labels(self, client: str) -> tuple[str, ...]:
        """Class names in the order of this client's outputs."""
        return self.labels()

    def load_client(self, client: str) -> ClientData:
        """The encoded parts of one client. Raises DataError for an unknown one."""
        rows = self._rows(client)
        tested = self.data.test or self.data.train
        return ClientData(
            train=self._examples(client, self.data.train, rows.train),
            validation=self._examples(client, self.data.train, rows.validation),
            test=self._examples(client, tested, rows.test),
        )

    @property
    def source(self) -> str:
        """Origin of the rows, to be named in messages."""
        return type(self).__name__

    def fingerprint(self) -> Fingerprint:
        """Of the rows, the classes and, unless they are a node's own, of who holds which rows."""
        parts = of_rows(self.data)
        if not self.partition.own:
            parts["clients"] = of_clients(self.split.clients)
        return Fingerprint(self.source, parts)

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The model's own loss: mean cross-entropy of a batch, a scalar."""
        loss: torch.Tensor = model(**batch).loss
        return loss

    @cached_property
    def data(self) -> LabelledData:
        """The rows as ``read``, once."""
        return self.read()

    @cached_property
    def split(self) -> FederationSplit:
        """The rows of each client."""
        test = None if self.data.test is None else _columns(self.data.test)
        return split_federation(self.partition, self.seed, _columns(self.data.train), test)

    def _rows(self, client: str) -> ClientRows:
        if self.partition.own:
            test = None if self.data.test is None else self.data.test.labels
            return own_rows(self.partition, self.seed, client, self.data.train.labels, test)
        if client not in self.split.clients:
            raise DataError(
                f"unknown client {client!r}: expected one of {listing(self.split.clients)}",
                sent="the run gives this client no part of its data set",
                key="federation.clients",
            )
        return self.split.clients[client]

    def _counts(self) -> tuple[RowCount, ...]:
        """Counts the rows of each split: read, dropped and used."""
        held = self.split.clients.values()
        train = sum(len(rows.train) + len(rows.validation) for rows in held)
        test = sum(len(rows.test) for rows in held)
        if self.data.test is None:
            return (self._count("train", self.data.train, train + test),)
        return self._count("train", self.data.train, train), self._count("test", self.data.test, test)

    def _count(self, split: str, rows: Rows, held: int) -> RowCount:
        unassigned = self.split.unassigned.get(split, 0)
        reasons = {
            **rows.left_out,
            "of no client": unassigned,
            "beyond train_examples or test_examples": len(rows) - unassigned - held,
        }
        left_out = {reason: count for reason, count in reasons.items() if count}
        return RowCount(split, len(rows) + sum(rows.left_out.values()), left_out)

    def _class_counts(self, rows: NDArray[np.int64]) -> list[int]:
        counts: list[int] = np.bincount(self.data.train.labels[rows], minlength=len(self.labels())).tolist()
        return counts

    def _renamed(self, client: str, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """A client's names of the classes."""
        return labels

    def _examples(self, client: str, rows: Rows, indices: NDArray[np.int64]) -> Examples:
        return self.encode(self._inputs(client, rows, indices), self._renamed(client, rows.labels[indices]))

    def _inputs(self, client: str, rows: Rows, indices: NDArray[np.int64]) -> Inputs:
        """The inputs of some of a client's rows, as this client has them."""
        return rows.inputs.select(indices)


def _columns(rows: Rows) -> dict[str, NDArray[Any]]:
    """The columns that a partitioner may go by."""
    return {LABEL: rows.labels} | ({} if rows.groups is None else {GROUP: rows.groups})
