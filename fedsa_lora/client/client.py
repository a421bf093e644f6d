"""The Flower client: joins its store, its rounds in NumPy and the trainer of its process."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArray as FlowerArray
from flwr.common import Scalar

from fedsa_lora.client.egress import told
from fedsa_lora.client.model import ClientModel, majority
from fedsa_lora.client.personal import OwnModel, beside, of_phase
from fedsa_lora.client.round import ClientRounds, OpenRound
from fedsa_lora.client.workbench import Workbench
from fedsa_lora.errors import FedSAError, TrainingError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import NamedArrays, cut, digest, padded
from fedsa_lora.exchange.reported import LOSS
from fedsa_lora.learning.job import Outcome, complete, settled
from fedsa_lora.learning.personalisation import Training
from fedsa_lora.store import ClientStore
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.task import Task


class FedSAClient(NumPyClient):
    """One client of FedSA-LoRA (arXiv:2410.01463, algorithm 1) for any split and codec.

    ``fedsa_lora.flower.client_app`` makes clients from a model, data, a LoraConfig and a split. A client made
    by hand sends nothing that the split keeps local, but only such an app searches each reply.

    Parameters
    ----------
    client : str
        The permanent name of the client, such as its partition.
    bench : Workbench
        Shared by the clients of a process: the task, the model with its adapters, the split, the
        settings of training. ``fedsa_lora.client.build.workbench`` makes it from the config of a run.
    store : ClientStore
        The client's local state between rounds: B, the head, and the residual of its codec.
    forbid : sequence of str
        Roles and patterns of tensor names that never leave this machine.

    Raises
    ------
    ConfigError
        For a pattern of ``forbid`` that matches no tensor of the model.
    """

    def __init__(self, client: str, bench: Workbench, store: ClientStore, forbid: Sequence[str] = ()) -> None:
        self.client, self.bench, self.store = client, bench, store
        self.model = ClientModel(client, bench, store)
        self.primary = bench.primary
        self.rounds = ClientRounds(client, bench, store.salted, forbid)

    def get_properties(self, config: dict[str, Scalar]) -> dict[str, Scalar]:
        """The permanent id of this client: not Flower's node id."""
        return {"client": self.client}

    def fit(
        self, parameters: list[FlowerArray], config: dict[str, Scalar]
    ) -> tuple[list[FlowerArray], int, dict[str, Scalar]]:
        """One local round. A fault of this client is returned in a header, so that the server can
        report it; its stored state is then still that of the previous round."""
        header = wire.read_header(config, wire.BroadcastHeader)
        try:
            self.store.claim(header.run, header.resumed, self.bench.data_digest)
            with self.store.locked():
                payload, upload = self._fit(header, parameters, config)
        except FedSAError as error:
            payload = np.zeros(0, np.float32)
            upload = self.rounds.header(header.round, 0, error=told(error))
        return [payload], upload.examples, dict(wire.write_header(upload))

    def evaluate(
        self, parameters: list[FlowerArray], config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Metrics of the personalised model (shared values, local B and head) on the client's held-out part.
        A client without one reports that nothing was measured."""
        header = wire.read_header(config, wire.BroadcastHeader)
        try:
            self.store.claim(header.run, header.resumed, self.bench.data_digest)
            self.store.count_evaluation(header.round)
            train, measured = len(self.model.data.train), len(self.model.held_out)
            if not measured:
                return 0.0, 0, dict(wire.write_header(self.rounds.header(header.round, train)))
            state = self.store.load(header.round)
            opened = self.rounds.open(header, parameters, state, mean_of=header.round)
            report = self._report(opened, header.reference)
            check_measured(report, self.bench.task)
        except FedSAError as error:
            upload = self.rounds.header(header.round, 0, error=told(error))
            return 0.0, 0, dict(wire.write_header(upload))
        upload = self.rounds.header(header.round, train, measured=measured, report=report)
        return report.get(LOSS, 0.0), measured, dict(wire.write_header(upload))

    def _fit(
        self, header: wire.BroadcastHeader, parameters: list[FlowerArray], config: Mapping[str, Scalar]
    ) -> tuple[FlowerArray, wire.UploadHeader]:
        state = self.store.before(header.round)
        opened = self.rounds.open(header, parameters, state, mean_of=header.round - 1)
        local = self.model.local(
            header.round,
            opened.parts.trained,
            opened.values,
            merged=opened.received.merged,
            anchor=opened.anchor,
            mu=float(config.get("proximal_mu", 0.0)),
            others=opened.others,
            scoring=self.rounds.scoring,
        )
        own: NamedArrays = {}
        phase: NamedArrays = {}
        examples = len(self.rounds.train)
        if wire.REQUEST in config:
            initial = padded(cut(self.bench.initial, self.rounds.layout), self.bench.model.layout)
            word, kept = str(config[wire.REQUEST]), of_phase(state)
            examples, training = self.bench.requests.answer(word, local, self.bench.task, initial, kept)
            outcome, phase = self._done(training)
        else:
            outcome, own = self._done(self.bench.personalisation.fit(local, beside(state)))
        numbers = outcome.report.numbers()
        measured = len(self.model.held_out) if header.measure_before else 0
        if measured:
            model = OwnModel(cut(outcome.values, self.rounds.layout), own, opened.others)
            numbers[self.primary.before] = self._measure(opened, model)[self.primary.name]
            check_measured(numbers, self.bench.task)
        closed = self.rounds.close(opened, outcome, own, phase, examples)
        self.store.save(closed.state)
        return closed.payload, replace(closed.header, measured=measured, report=numbers)

    def _done(self, training: Training) -> tuple[Outcome, NamedArrays]:
        """Carries out the trainings of a round. Raises TrainingError where a value that they return is not
        finite."""
        outcome, kept = settled(*complete([training], self.bench.trainer))
        check_finite(outcome.values | {f"kept/{name}": array for name, array in kept.items()})
        return outcome, kept

    def _measure(self, opened: OpenRound, model: OwnModel, record: bool = False) -> dict[str, float]:
        job = self.model.own(opened.round, model, opened.received.merged)
        return self.model.measure(job, opened.round if record else None)

    def _report(self, opened: OpenRound, reference: bool) -> dict[str, float]:
        model = OwnModel(opened.values, beside(opened.state), opened.others)
        report = self._measure(opened, model, record=True)
        if self.bench.task.labels():
            report["majority"] = majority(self.bench.task, self.model.data.train, self.model.held_out)
        if any(spec.role == "head" for spec in self.rounds.pool):
            newcomer = OwnModel(self.rounds.values(opened.received, None))
            if not model.beside and digest(newcomer.common) == digest(model.common):
                report[self.primary.of_global] = report[self.primary.name]  # nothing is this client's own
            else:
                report[self.primary.of_global] = self._measure(opened, newcomer)[self.primary.name]
        if reference and self.bench.alone is not None:
            report["local_only"] = self.model.train_alone(self.bench.alone)
        return report


def check_finite(arrays: NamedArrays) -> None:
    """Raise TrainingError naming the tensors that hold NaN or infinity."""
    if bad := sorted(name for name, array in arrays.items() if not np.isfinite(array).all()):
        raise TrainingError(f"training made these tensors NaN or infinite: {bad}; lower train.lr")


def check_measured(numbers: Mapping[str, float], task: Task) -> None:
    """Raise TrainingError naming the numbers of a ``task`` that are NaN or infinite: no message can carry
    them."""
    bad = {name: value for name, value in numbers.items() if not math.isfinite(value)}
    if not bad:
        return
    own = [measure for measure in getattr(task, "measured", ()) if not measure.name.endswith("loss")]
    found = [one.name for one in own if bad.keys() & {one.name, one.before, one.of_global}]
    remedy = "lower train.lr"
    if found:  # a user's function made it: a learning rate is not the first thing to look at
        remedy = (
            f"the function that measures {listing(found)} (evaluate or compute_metrics) returned it; "
            "expected a finite number for any outputs"
        )
    named = ", ".join(f"{name} is {value}" for name, value in bad.items())
    raise TrainingError(f"on the examples that the model is measured on, {named}: {remedy}")
