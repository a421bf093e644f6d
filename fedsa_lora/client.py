"""The Flower client: broadcast in, own B and head from its store, train, only what is shared out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArray as FlowerArray
from flwr.common import Scalar
from numpy.typing import NDArray

from fedsa_lora.errors import DataError, FedSAError, TrainingError, WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, NamedArrays, Vector, digest
from fedsa_lora.exchange.split import AdapterSplit, RoleSplit
from fedsa_lora.learning.adapters import AdapterModel, initial_state
from fedsa_lora.learning.training import TrainReport, TrainSettings, predict, train
from fedsa_lora.seeds import generator, torch_seed
from fedsa_lora.store import ClientState, ClientStore
from fedsa_lora.tasks.task import ClientData, Examples, Task


@dataclass(frozen=True)
class Alone:
    """The reference a client is compared with: the same training without a federation."""

    split: RoleSplit
    settings: TrainSettings
    rounds: int


@dataclass(frozen=True)
class Workbench:
    """What all clients of one process share: nothing here belongs to a client.

    The backbone is resident; ``model`` holds whatever client was served last and is overwritten
    completely before it is used for another.
    """

    task: Task
    model: AdapterModel
    split: RoleSplit
    settings: TrainSettings
    seed: int
    head_row_norm: float | None = None
    part: Literal["test", "validation"] = "test"
    alone: Alone | None = None

    @cached_property
    def parts(self) -> AdapterSplit:
        return self.split(self.model.layout)

    @cached_property
    def shared(self) -> Layout:
        return self.model.layout.select(self.parts.shared)

    @cached_property
    def initial(self) -> dict[str, NDArray[np.float32]]:
        return initial_state(self.model.layout, self.seed, self.head_row_norm)


class FedSAClient(NumPyClient):
    """One client of FedSA-LoRA (arXiv:2410.01463, algorithm 1) for any split by role."""

    def __init__(self, client: str, bench: Workbench, store: ClientStore) -> None:
        self.client, self.bench, self.store = client, bench, store

    def get_properties(self, config: dict[str, Scalar]) -> dict[str, Scalar]:
        """The id under which this client is known for good: not Flower's node id."""
        return {"client": self.client}

    def fit(
        self, parameters: list[FlowerArray], config: dict[str, Scalar]
    ) -> tuple[list[FlowerArray], int, dict[str, Scalar]]:
        """One local round. A fault of this client's own is answered by a header that says so, so that
        the server can name it; its stored state is then still that of the round before."""
        header = wire.read_header(config, wire.BroadcastHeader)
        try:
            update, upload = self._fit(header, parameters, config)
        except FedSAError as error:
            update = np.zeros(0, np.float32)
            upload = self._upload(header.round, 0, update, error=f"{type(error).__name__}: {error}")
        return [update], upload.examples, dict(wire.write_header(upload))

    def evaluate(
        self, parameters: list[FlowerArray], config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Metrics of the personalised model (what is shared, own B, own head) on its own held-out part."""
        header = wire.read_header(config, wire.BroadcastHeader)
        try:
            self._install(self._receive(header, parameters), self.store.load(header.round))
            report = self._measure(header)
        except FedSAError as error:
            upload = self._upload(header.round, 0, error=f"{type(error).__name__}: {error}")
            return 0.0, 0, dict(wire.write_header(upload))
        upload = self._upload(header.round, len(self._held_out), report=report)
        return report["loss"], upload.examples, dict(wire.write_header(upload))

    def _fit(
        self, header: wire.BroadcastHeader, parameters: list[FlowerArray], config: dict[str, Scalar]
    ) -> tuple[Vector, wire.UploadHeader]:
        bench, broadcast = self.bench, self._receive(header, parameters)
        before = self._install(broadcast, self.store.load(header.round - 1))
        mu = float(config.get("proximal_mu", 0.0))
        report = self._train(
            header.round,
            bench.parts.trained,
            bench.settings,
            (mu, bench.shared.unpack(broadcast)) if mu else None,
        )
        arrays = bench.model.read()
        check_finite(arrays)
        numbers = {k: float(v) for k, v in asdict(report).items() if k != "examples"}
        if header.measure_before:
            numbers["accuracy_before"] = self._metrics()["accuracy"]
        private = {name: arrays[name] for name in bench.parts.local}
        self.store.save(ClientState(header.round, private))
        update = bench.shared.pack({name: arrays[name] for name in bench.parts.shared}) - broadcast
        return update, self._upload(
            header.round, len(self._data.train), update, before=before, after=digest(private), report=numbers
        )

    @cached_property
    def _data(self) -> ClientData:
        return self.bench.task.load_client(self.client)

    def _receive(self, header: wire.BroadcastHeader, parameters: list[FlowerArray]) -> Vector:
        vector = wire.check_vector(parameters, self.bench.shared)
        wire.check_belongs(header, vector, self.bench.shared)
        return vector

    def _install(self, broadcast: Vector, state: ClientState | None) -> str:
        """Set every tensor of the model: shared from the broadcast, local from the own store, the
        rest and a first round's from the common seed. Returns the digest of the private tensors as
        they then stand in the model."""
        bench = self.bench
        local = bench.model.layout.select(bench.parts.local)
        private = {name: bench.initial[name] for name in local.names} if state is None else state.tensors
        local.check(private)
        bench.model.write(bench.initial | bench.shared.unpack(broadcast) | private)
        standing = bench.model.read()
        installed = digest({name: standing[name] for name in local.names})
        # a backbone is added to its pretrained value and taken off again, which rounds
        if all(spec.role != "base" for spec in local) and installed != digest(private):
            raise WireError(f"client {self.client}: its private tensors were not installed as stored")
        return installed

    def _train(
        self,
        round_: int,
        trained: frozenset[str],
        settings: TrainSettings,
        proximal: tuple[float, NamedArrays] | None = None,
    ) -> TrainReport:
        return train(
            self.bench.model,
            self.bench.task,
            self._data.train,
            settings,
            trained=trained,
            rng=generator(self.bench.seed, "batches", self.client, round_),
            torch_seed=torch_seed(self.bench.seed, "dropout", self.client, round_),
            proximal=proximal,
        )

    def _measure(self, header: wire.BroadcastHeader) -> dict[str, float]:
        report = self._metrics() | {"majority": majority_accuracy(self._data.train, self._held_out)}
        if self.bench.split.head == "shared":
            report["global_accuracy"] = self._global_accuracy(report["accuracy"])
        if header.reference and self.bench.alone is not None:
            report["local_only"] = self._train_alone(self.bench.alone)
        return report

    @property
    def _held_out(self) -> Examples:
        part = self.bench.part
        held_out = self._data.held_out(part)
        if not len(held_out):
            raise DataError(
                f"client {self.client} has no {part} examples to be measured on: raise "
                f"federation.{part}_examples or test_fraction, or give it more data"
            )
        return held_out

    def _metrics(self) -> dict[str, float]:
        data, bench = self._held_out, self.bench
        logits = predict(bench.model, bench.task, data, bench.settings)
        return bench.task.evaluate(logits, data.labels) | {"loss": cross_entropy(logits, data.labels)}

    def _global_accuracy(self, personalised: float) -> float:
        """Of what a newcomer would get: the shared tensors, and the common start of the local ones."""
        bench = self.bench
        if not bench.parts.local:
            return personalised
        standing = bench.model.read()
        bench.model.write(standing | {name: bench.initial[name] for name in bench.parts.local})
        return self._metrics()["accuracy"]

    def _train_alone(self, alone: Alone) -> float:
        """Accuracy after the same rounds of the same seeds, from the common start, alone."""
        self.bench.model.write(self.bench.initial)
        trained = alone.split(self.bench.model.layout).trained
        for round_ in range(1, alone.rounds + 1):
            self._train(round_, trained, alone.settings)
        return self._metrics()["accuracy"]

    def _upload(
        self,
        round_: int,
        examples: int,
        update: Vector | None = None,
        *,
        before: str = "",
        after: str = "",
        report: dict[str, float] | None = None,
        error: str = "",
    ) -> wire.UploadHeader:
        return wire.UploadHeader(
            client=self.client,
            round=round_,
            layout=self.bench.shared.digest,
            digest=wire.vector_digest(np.zeros(0, np.float32) if update is None else update),
            examples=examples,
            private_before=before,
            private_after=after,
            report=report or {},
            error=error,
        )


def check_finite(arrays: NamedArrays) -> None:
    """Raise TrainingError naming the tensors that hold NaN or infinity."""
    if bad := sorted(name for name, array in arrays.items() if not np.isfinite(array).all()):
        raise TrainingError(f"training made these tensors NaN or infinite: {bad}; lower train.lr")


def majority_accuracy(train_part: Examples, test_part: Examples) -> float:
    """Accuracy on the test part of always predicting the most frequent class of the train part."""
    majority = np.bincount(train_part.labels).argmax()
    return float((test_part.labels == majority).mean())


def cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean of -log softmax(logits)[label], in nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_softmax[np.arange(len(labels)), labels].mean())
