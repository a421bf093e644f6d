"""The Flower client: broadcast in, own B and head from its store, train, only what is shared out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArray as FlowerArray
from flwr.common import Scalar
from numpy.typing import NDArray

from fedsa_lora.client_model import ClientModel, majority
from fedsa_lora.egress import told
from fedsa_lora.errors import FedSAError, TrainingError, WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.adaptive import Importance, scored
from fedsa_lora.exchange.arrays import NamedArrays, Vector, cut, digest, padded
from fedsa_lora.exchange.codec import compress
from fedsa_lora.exchange.reported import LOSS
from fedsa_lora.exchange.split import AdapterSplit
from fedsa_lora.learning.importance import ImportanceMeter
from fedsa_lora.personal import (
    COMMON,
    HELD,
    MERGED,
    PERSONAL,
    RESIDUAL,
    START,
    TRAINED,
    OwnModel,
    Received,
    beside,
    others,
    personal,
    receive,
    turn_split,
)
from fedsa_lora.seeds import generator
from fedsa_lora.store import ClientState, ClientStore
from fedsa_lora.workbench import Workbench


class FedSAClient(NumPyClient):
    """One client of FedSA-LoRA (arXiv:2410.01463, algorithm 1) for any split and codec.

    ``forbid`` are roles and patterns of tensor names that this machine does not let out. Raises ConfigError
    for a pattern that matches no tensor of the model.
    """

    def __init__(self, client: str, bench: Workbench, store: ClientStore, forbid: Sequence[str] = ()) -> None:
        self.client, self.bench, self.store = client, bench, store
        self.model = ClientModel(client, bench, store)
        self.layout, self.pool = bench.layout(client), bench.pool(client)
        self.allowed = bench.split.allowed(self.layout, forbid, bench.model.frozen)

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
            self.store.claim(header.run, header.resumed, self.bench.data_digest)
            with self.store.locked():
                payload, upload = self._fit(header, parameters, config)
        except FedSAError as error:
            payload = np.zeros(0, np.float32)
            upload = self._upload(header.round, 0, error=told(error))
        return [payload], upload.examples, dict(wire.write_header(upload))

    def evaluate(
        self, parameters: list[FlowerArray], config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Metrics of the personalised model (what is shared, own B, own head) on its own held-out part. A
        client without one says that nothing was measured."""
        header = wire.read_header(config, wire.BroadcastHeader)
        try:
            self.store.claim(header.run, header.resumed, self.bench.data_digest)
            self.store.count_evaluation(header.round)
            train, measured = len(self.model.data.train), len(self.model.held_out)
            if not measured:
                return 0.0, 0, dict(wire.write_header(self._upload(header.round, train)))
            state = self.store.load(header.round)
            received = self._receive(header, parameters, state)
            common = self._common(received, received.turn.shared)
            rest = others(common, state, self._share(header), header.round)
            model = OwnModel(self._install(received, state), beside(state), rest)
            report = self._report(header, received, model)
            check_measured(report)
        except FedSAError as error:
            upload = self._upload(header.round, 0, error=told(error))
            return 0.0, 0, dict(wire.write_header(upload))
        upload = self._upload(header.round, train, measured=measured, report=report)
        return report.get(LOSS, 0.0), measured, dict(wire.write_header(upload))

    def _fit(
        self, header: wire.BroadcastHeader, parameters: list[FlowerArray], config: dict[str, Scalar]
    ) -> tuple[FlowerArray, wire.UploadHeader]:
        state = self.store.before(header.round)
        received = self._receive(header, parameters, state)
        start = self._install(received, state)
        parts = turn_split(self.bench.split, self.layout, received.turn)
        meter = self._meter()
        anchor = self._common(received, parts.shared)
        local = replace(
            self.model.local(header.round, parts.trained),
            anchor=anchor,
            mu=float(config.get("proximal_mu", 0.0)),
            others=others(anchor, state, self._share(header), header.round - 1),
            observe=None if meter is None else meter.observe,
        )
        report, own = self.bench.personalisation.fit(local, beside(state))
        arrays = self.model.read()
        check_finite(arrays | {PERSONAL + name: array for name, array in own.items()})
        numbers = {k: float(v) for k, v in asdict(report).items() if k != "examples"}
        measured = len(self.model.held_out) if header.measure_before else 0
        if measured:
            model = OwnModel(arrays, own, local.others)
            primary = self.bench.primary
            numbers[primary.before] = self.model.measure(header.round, model, received.merged)[primary.name]
            check_measured(numbers)
        payload, residual = self._encode(header.round, received, parts, arrays, state)
        private = {name: arrays[name] for name in parts.local}
        memory = self._memory(received, start, arrays, residual)
        for name, array in own.items():  # what may be shared is not searched for in what leaves
            (memory if name in self.pool.names else private)[PERSONAL + name] = array
        self.store.save(ClientState(header.round, private, memory))
        return payload, self._upload(
            header.round,
            len(self.model.data.train),
            payload,
            measured=measured,
            shared=self.pool.mask(parts.shared),
            codec=self.bench.codec.name,
            counts=self._counts() if self.bench.counted and self.pool.count("head") else (),
            scores=() if meter is None else meter.scores(),
            private_before=self._private_digest(start),
            private_after=self._private_digest(arrays),
            report=numbers,
        )

    def _encode(
        self,
        round_: int,
        received: Received,
        parts: AdapterSplit,
        arrays: NamedArrays,
        state: ClientState | None,
    ) -> tuple[FlowerArray, Vector | None]:
        """The difference from the broadcast in what is shared, coded, and what of the pool is then
        still to be sent."""
        codec, shared = self.bench.codec, self.pool.select(parts.shared)
        max_norm = self.bench.settings.max_update_norm
        update = shared.pack({name: arrays[name] for name in shared.names})
        update -= self._of_pool(received.held, parts.shared)
        rng = generator(self.bench.seed, "codec", self.client, round_)
        if codec.lossless or not codec.error_feedback:
            return compress(codec, update, None, rng, max_norm)
        unsent = np.zeros(self.pool.size, np.float32)
        if state is not None and RESIDUAL in state.memory:
            unsent[:] = state.memory[RESIDUAL]
        for name in parts.local & set(self.pool.names):
            unsent[self.pool.span(name)] = 0  # went into the client's own value, see personal()
        index = self.pool.index(shared)
        at = slice(None) if index is None else index
        payload, unsent[at] = compress(codec, update, unsent[at], rng, max_norm)
        return payload, unsent

    def _memory(
        self, received: Received, start: NamedArrays, arrays: NamedArrays, residual: Vector | None
    ) -> dict[str, NDArray[np.float32]]:
        """What the next rounds need beside the private tensors."""
        memory = {MERGED + layer: array for layer, array in received.merged.items()}
        if residual is not None:
            memory[RESIDUAL] = residual
        if self.bench.downlink is not None:
            memory[HELD] = received.held
        common = self.pool.unpack(received.held)
        if self.bench.keep_trained:
            memory |= {TRAINED + name: arrays[name] for name in self.pool.names}
        for name in self.bench.split.degrees(self.layout):
            memory |= {START + name: start[name], TRAINED + name: arrays[name], COMMON + name: common[name]}
        return memory

    def _meter(self) -> ImportanceMeter | None:
        policy = self.bench.split
        if not isinstance(policy, Importance):
            return None
        return ImportanceMeter(policy.score, scored(policy, self.pool).names)

    def _counts(self) -> list[int]:
        classes = len(self.bench.task.labels())
        return [int(n) for n in np.bincount(self.model.data.train.labels, minlength=classes)]

    def _private_digest(self, arrays: NamedArrays) -> str:
        """Of what is always local, read back from the model: not of what a round makes so."""
        return self.store.salted(digest({name: arrays[name] for name in self.bench.split(self.layout).local}))

    def _common(self, received: Received, names: frozenset[str]) -> NamedArrays:
        """The common values of some tensors, in the shapes of the resident model."""
        values = self.pool.select(names).unpack(self._of_pool(received.held, names))
        return padded(values, self.bench.model.layout.select(names))

    def _of_pool(self, vector: Vector, names: frozenset[str]) -> Vector:
        index = self.pool.index(self.pool.select(names))
        return vector if index is None else vector[index]

    def _receive(
        self, header: wire.BroadcastHeader, parameters: list[FlowerArray], state: ClientState | None
    ) -> Received:
        return receive(header, parameters, self.pool, self.allowed, state, self.bench.downlink)

    def _install(self, received: Received, state: ClientState | None) -> dict[str, NDArray[np.float32]]:
        """Set every tensor of the model, and what was merged into the backbone. Returns the tensors as
        they then stand in the model."""
        initial = cut(self.bench.initial, self.layout)
        values = personal(self.bench.split, self.layout, received, initial, state)
        self.model.write(values, received.merged)
        standing = self.model.read()
        # a backbone is added to its pretrained value and taken off again, which rounds
        exact = [n for n in values if n not in self.bench.model.relative]
        if any(not np.array_equal(standing[name], values[name]) for name in exact):
            raise WireError(f"client {self.client}: its tensors were not installed as they should be")
        return standing

    def _share(self, header: wire.BroadcastHeader) -> float:
        """The weight of this client in the mean that it was sent; 0 where it is not in it, or is not told."""
        examples = len(self.model.data.train)
        if 0 < header.total < examples:
            raise WireError(f"a mean over {header.total} examples, of which this client alone has {examples}")
        return examples / header.total if header.total else 0.0

    def _report(self, header: wire.BroadcastHeader, received: Received, model: OwnModel) -> dict[str, float]:
        report = self.model.measure(header.round, model, received.merged, record=True)
        primary = self.bench.primary
        if self.bench.task.labels():
            report["majority"] = majority(self.bench.task, self.model.data.train, self.model.held_out)
        if any(spec.role == "head" for spec in self.pool):
            initial = cut(self.bench.initial, self.layout)
            newcomer = OwnModel(personal(self.bench.split, self.layout, received, initial, None))
            report[primary.of_global] = (
                report[primary.name]  # nothing is this client's own: it was measured already
                if not model.beside and digest(newcomer.common) == digest(model.common)
                else self.model.measure(header.round, newcomer, received.merged)[primary.name]
            )
        if header.reference and self.bench.alone is not None:
            report["local_only"] = self.model.train_alone(self.bench.alone)
        return report

    def _upload(
        self, round_: int, examples: int, payload: FlowerArray | None = None, **fields: Any
    ) -> wire.UploadHeader:
        return wire.UploadHeader(
            client=self.client,
            round=round_,
            layout=self.pool.digest,
            digest=wire.vector_digest(np.zeros(0, np.float32) if payload is None else payload),
            examples=examples,
            **fields,
        )


def check_finite(arrays: NamedArrays) -> None:
    """Raise TrainingError naming the tensors that hold NaN or infinity."""
    if bad := sorted(name for name, array in arrays.items() if not np.isfinite(array).all()):
        raise TrainingError(f"training made these tensors NaN or infinite: {bad}; lower train.lr")


def check_measured(numbers: Mapping[str, float]) -> None:
    """Raise TrainingError naming the numbers that are NaN or infinite: no message can carry them."""
    if bad := {name: value for name, value in numbers.items() if not math.isfinite(value)}:
        named = ", ".join(f"{name} is {value}" for name, value in bad.items())
        raise TrainingError(f"on the examples that the model is measured on, {named}: lower train.lr")
