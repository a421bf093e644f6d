"""FedSA: a Flower strategy around a Flower strategy, for messages that carry part of an adapter.

The inner strategy samples the clients and does the arithmetic, on plain float32 vectors of
values. ``FedSA`` says what is shared and sends it, admits or rejects what comes back, orders it by
client, and keeps the record of the round.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from flwr.common import (
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy
from numpy.typing import NDArray

from fedsa_lora.errors import RunError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Layout, NamedArrays, Vector
from fedsa_lora.exchange.codec import Codec, Dense
from fedsa_lora.exchange.measure import CLASSES, Measure
from fedsa_lora.exchange.reported import LOSS, of_evaluation, of_training
from fedsa_lora.exchange.split import SplitPolicy, Turn
from strategies.admission import Admission, Failure, Remark, admit
from strategies.attendance import Attendance
from strategies.bounds import Bounds, Rejections, believed, bounded, outlier
from strategies.cohort import Cohort, at_least
from strategies.decoding import Decoder
from strategies.downlink import Downlink
from strategies.exactness import Frozen, aggregation_error
from strategies.ledger import Evaluation, Ledger, Recorder, plain_mean, weighted_mean
from strategies.reasons import causes
from strategies.rules import fewest_results, recall, remembered, rule_for, sound_step
from strategies.traffic import message_bytes
from strategies.updates import Update

EXAMPLES = "examples/"  # by client in the memory of a checkpoint, where clients are told the total
Ins = TypeVar("Ins", FitIns, EvaluateIns)
log = logging.getLogger("flwr")


class FedSA(Strategy):
    """FedSA-LoRA (arXiv:2410.01463) around any Flower strategy.

    Parameters
    ----------
    inner : Strategy
        Samples clients and aggregates vectors of values (layout.size,) in float32, or is one of our
        rules for LoRA factors.
    layout : Layout
        The tensors that may be shared; the server holds no other.
    initial : Vector
        Their common start, (layout.size,) float32.
    split : SplitPolicy
        Which of them are shared in which round.
    codec, downlink : Codec
        How uploads are coded, and broadcasts to clients that saw the one before (None: always whole).
    ranks : mapping
        The ranks of clients whose adapter is smaller than the layout's.
    tell_total : bool
        Tell the clients of a mean how many examples all of them had, so that each can take its own part off.
    classes : int
        How many classes clients tell the counts of, by which a shared head is averaged; 0: they tell none.
    frozen : Frozen
        The factors that all clients hold at the same value and nobody trains, to measure the aggregation
        error with; None where the server does not know them.
    cohort : Cohort
        Who the clients are, and who takes part in a round.
    evaluation : Evaluation
        When all clients are evaluated, also those that were not sampled.
    recorder : Recorder
        Receives one row per client and phase, one per round, and the shared vector.
    uniform : bool
        Whether every client counts the same, whatever its number of train examples.
    bounds : Bounds
        How large an upload and its number of examples may be, and how many may be rejected; None: no bounds.
    measures : sequence of Measure
        The numbers that the task measures, the one that clients are compared by first: clients may report
        these, each in its range, and no others. By default those of classification.
    min_results : float
        Share of the clients that a round needs which must answer well for it to count. With fewer the
        round is skipped: what is common stays as it was.
    attendance : Attendance
        Leaves out clients that keep failing, and says how many rounds in a row may be skipped before the
        run ends with RunError, which names who failed and why.
    run, resumed : str, int
        What clients know this run by, and how often it was resumed: their stores serve no other beside it,
        and go back to an earlier round only when it was.
    """

    def __init__(
        self,
        inner: Strategy,
        layout: Layout,
        initial: Vector,
        *,
        split: SplitPolicy,
        cohort: Cohort,
        evaluation: Evaluation,
        recorder: Recorder,
        codec: Codec | None = None,
        downlink: Codec | None = None,
        ranks: Mapping[str, int] | None = None,
        tell_total: bool = False,
        classes: int = 0,
        frozen: Frozen | None = None,
        uniform: bool = False,
        bounds: Bounds | None = None,
        measures: Sequence[Measure] = CLASSES,
        min_results: float = 1.0,
        attendance: Attendance | None = None,
        run: str = "",
        resumed: int = 0,
    ) -> None:
        self.inner, self.layout, self.shared, self.split = inner, layout, initial, split
        self.codec, self.ranks, self.frozen = codec or Dense(), ranks or {}, frozen
        self.classes, self.uniform, self.tell_total = classes, uniform, tell_total
        self.cohort, self.evaluation, self.min_results = cohort, evaluation, min_results
        self.run, self.resumed = run, resumed
        self.bounds = bounds or Bounds()
        self.measures = measures
        self.rejections = Rejections(self.bounds.max_rejections)
        self.attendance = attendance or Attendance()
        self.decoder = Decoder(layout, self.codec, self.ranks, classes, uniform)
        self.rule = rule_for(inner, layout)
        self.fewest = fewest_results(type(inner), getattr(inner, "num_malicious_clients", 0))
        self.downlink = Downlink(layout, initial, downlink, cohort.seed)
        self.ledger, self.recorder = Ledger(recorder, measures[0]), recorder
        self._examples: dict[str, int] = {}  # by client in the last mean, if they are told the total
        self._common: dict[int, Turn] = {}  # what all clients are asked for in a round, found once
        self._round: dict[str, Turn] = {}  # what each client shares this round, if it is sampled
        self._turns: dict[str, Turn] = {}  # what each client of the present phase is asked for
        self._outlier = ""  # what was odd in the last round that counted, for the error of a run that ends
        self._needed = 0  # clients that the inner strategy asked for in this round
        self._left_out: list[Remark] = []  # nodes that could not be asked in this round, and why
        self._attended: dict[str, Any] = {}  # who is there and who is left out, for the row of the round

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """The common start: no client is asked, and no backbone is loaded."""
        return ndarrays_to_parameters([self.shared])

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """The inner strategy's choice of clients, each sent what it lacks and is asked for its turn."""
        self.ledger.begin()
        excluded = self.attendance.excluded(server_round)
        there = self.cohort.at(server_round, client_manager, excluded, self.min_results)
        chosen = self.inner.configure_fit(
            server_round=server_round,
            parameters=ndarrays_to_parameters([self.shared]),
            client_manager=there,
        )
        self._needed, self._left_out = there.needed, self.cohort.remarks
        self._attended = {"present": len(there.ordered), "excluded": there.left_out, "asked": len(chosen)}
        everyone = map(self.cohort.name, there.ordered)
        self._round = {client: self.turn(client, server_round) for client in everyone}
        names = [self.cohort.name(proxy) for proxy, _ in chosen]
        turns = {name: self._round.get(name) or self.turn(name, server_round) for name in names}
        measure = self.evaluation.compares_before(server_round)
        configs = [ins.config for _, ins in chosen]
        messages = self._messages(FitIns, turns, configs, server_round, measure_before=measure)
        return list(zip((proxy for proxy, _ in chosen), messages, strict=True))

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[Failure[FitRes]]
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Admit, bound, order by client, aggregate, keep float32, record; or skip the round."""
        numbers = of_training(self.measures, self.evaluation.compares_before(server_round))
        admission = admit(server_round, results, failures, self.cohort.name, numbers, decode=self.decode)
        admission = bounded(admission, self.layout, self.bounds)
        warn_of(admission)
        answered = {answer.header.client for answer in admission.answers}
        self.attendance.note(server_round, self._turns, answered)
        enough = len(answered) >= max(self.fewest, at_least(self.min_results, self._needed))
        seen = admission.with_remarks(admission.answers, self._left_out)
        self.ledger.fit(server_round, seen, self._announced() | self._attended | {"skipped": not enough})
        self.rejections.count(admission)
        if enough:
            self._take(server_round, admission)
        else:
            self._skip(server_round, admission)
        self.recorder.checkpoint(server_round, self.layout, self.shared, self.memory())
        if not self._measures(server_round):
            self.ledger.close(evaluated=False)
        return ndarrays_to_parameters([self.shared]), {}

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Every client that is there and not left out, with what was just aggregated, when a round is due."""
        if not self._measures(server_round):
            return []
        excluded = self.attendance.excluded(server_round)
        there = self.cohort.everyone(client_manager)
        everyone = [proxy for proxy in there if self.cohort.name(proxy) not in excluded]
        turns = {}
        for name in map(self.cohort.name, everyone):  # some perhaps came during the round
            turn = self._round.get(name) or self.turn(name, server_round)
            # what joined in the round that ended has a common value now, unless that round was skipped
            turns[name] = turn if self.attendance.skipped else Turn(turn.shared)
        measure = self.evaluation.trains_alone(server_round)
        messages = self._messages(EvaluateIns, turns, [{}] * len(turns), server_round, reference=measure)
        return list(zip(everyone, messages, strict=True))

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[Failure[EvaluateRes]],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """The primary measure of personalised models over the clients that were measured: mean, weighted by
        test examples, and the worst. Raises RunError where none answers in the last round: the run has no
        result."""
        if not self._measures(server_round):
            return None, {}
        numbers = of_evaluation(self.measures, self.evaluation.trains_alone(server_round))
        admission = admit(server_round, results, failures, self.cohort.name, numbers)
        admission = believed(admission, self.bounds)
        warn_of(admission)
        since_training = [remark for remark in self.cohort.remarks if remark not in self._left_out]
        rows = self.ledger.evaluate(admission.with_remarks(admission.answers, since_training))
        if not rows and server_round == self.evaluation.rounds:
            told = ["no client answered the last evaluation", *causes(admission.failures)]
            raise RunError("\n".join(told))
        measured = [row for row in rows if row["measured"]]
        self.ledger.close(evaluated=bool(measured))
        loss = weighted_mean([(row[LOSS], row["measured"]) for row in measured if LOSS in row])
        primary = self.measures[0].name
        mean = plain_mean([row[primary] for row in measured])
        return loss, {} if mean is None else {primary: mean}

    def evaluate(self, server_round: int, parameters: Parameters) -> None:
        """Nothing: the server holds no backbone and no data."""
        return

    def decode(self, header: wire.UploadHeader, result: FitRes) -> Update:
        """A client's update. Raises WireError unless it is exactly what this client was asked for."""
        return self.decoder(self._turns, header, result)

    def turn(self, client: str, round_: int) -> Turn:
        """What a client is asked to share in a round."""
        if round_ not in self._common:
            self._common = {round_: Turn(self.split.in_round(self.layout, round_))}
        return self._common[round_]

    def combine(self, round_: int, updates: Sequence[Update]) -> float | None:
        """Take the clients' updates into what is common. The aggregation error, where it is known."""
        self.shared, error = self.stepped(round_, self.downlink, self.shared, updates)
        return error

    def stepped(
        self, round_: int, downlink: Downlink, vector: Vector, updates: Sequence[Update]
    ) -> tuple[Vector, float | None]:
        """What the rule makes of a vector and the updates to it, published; and the aggregation error."""
        try:
            step = sound_step(self.rule, self.inner, round_, vector, updates)
        except RunError as fault:
            words = [str(fault), outlier(updates)]
            raise RunError("; ".join(filter(None, words))) from fault
        error = aggregation_error(self.split, self.layout, self.frozen, vector, updates)
        downlink.publish(round_, step.vector, step.merge, [update.client for update in updates])
        return step.vector, error

    def downlink_of(self, client: str) -> Downlink:
        """Where a client's broadcasts come from: one for all, unless a subclass says otherwise."""
        return self.downlink

    def learn(self, round_: int, admission: Admission[FitRes], updates: Sequence[Update]) -> None:
        """A place for subclasses that decide the next round from what the clients sent."""

    def memory(self) -> dict[str, NDArray[Any]]:
        """What is kept with a checkpoint beside the shared vector, so that ``restore`` can go on from it:
        what clients hold of it and what was merged into the frozen weights, who is in the mean with how
        many examples, who failed and who was rejected how often, and what the inner strategy remembers."""
        examples = {EXAMPLES + client: np.array([n]) for client, n in self._examples.items()}
        counts = self.attendance.memory() | self.rejections.memory()
        return self.downlink.memory() | examples | counts | remembered(self.inner)

    def restore(self, round_: int, vector: Vector, memory: NamedArrays) -> None:
        """Go on after a round from its checkpoint, to the same bits as without the break."""
        self.shared = vector
        self.downlink.restore(round_, vector, memory)
        self.attendance.restore(memory)
        recall(self.inner, memory, vector)
        self.rejections.restore(memory)
        counts = {n.removeprefix(EXAMPLES): a for n, a in memory.items() if n.startswith(EXAMPLES)}
        self._examples = {client: int(count[0]) for client, count in counts.items()}

    def _messages(
        self,
        kind: type[Ins],
        turns: Mapping[str, Turn],
        configs: Sequence[Mapping[str, Scalar]],
        round_: int,
        **asked: Any,
    ) -> list[Ins]:
        """The broadcast to each client, made once for all that are sent the same; ``configs`` are what
        the inner strategy tells each of them."""
        made: dict[Any, tuple[Ins, int]] = {}
        keys = {}
        for (client, turn), config in zip(turns.items(), configs, strict=True):
            sending = self.downlink_of(client).sending(client, self.ranks.get(client))
            total = sum(self._examples.values()) if client in self._examples else 0
            keys[client] = (turn, id(sending), total, tuple(sorted(config.items())))
            if keys[client] not in made:
                layout = self.layout.limited(self.ranks.get(client))
                header = wire.BroadcastHeader(
                    round=round_,
                    shared=layout.mask(turn.shared),
                    joining=layout.mask(turn.joining),
                    total=total,
                    run=self.run,
                    resumed=wire.stretch(self.resumed),
                    **sending.fields,
                    **asked,
                )
                entries = {**config, **wire.write_header(header)}
                message = kind(ndarrays_to_parameters(sending.arrays), entries)
                made[keys[client]] = message, message_bytes(message)
        self._turns = dict(turns)
        self.ledger.sends({client: made[key][1] for client, key in keys.items()})
        return [made[key][0] for key in keys.values()]

    def _announced(self) -> dict[str, Any]:
        """The split of the round for its row: the names, where they differ from those of the row before."""
        shared = {name for turn in self._turns.values() for name in turn.shared}
        said: dict[str, Any] = {"shared": sum(s.size for s in self.layout if s.name in shared)}
        if self.split.adaptive or shared != set(self.layout.names):
            said["split"] = {client: self.layout.mask(turn.shared) for client, turn in self._turns.items()}
            if len(set(said["split"].values())) == 1:
                said["split"] = sorted(shared)
        return said

    def _measures(self, round_: int) -> bool:
        """Whether a round is evaluated: when it is due, and changed something or is the last."""
        last = round_ == self.evaluation.rounds
        return last or (self.evaluation.due(round_) and not self.attendance.skipped)

    def _take(self, round_: int, admission: Admission[FitRes]) -> None:
        """A round that counts: combine what was admitted, and learn from it."""
        updates: list[Update] = [answer.value for answer in admission.answers]
        self.ledger.aggregated({"aggregation_error": self.combine(round_, updates)})
        self.learn(round_, admission, updates)
        self._examples = {u.client: u.examples for u in updates} if self.tell_total else {}
        self.attendance.skipped = 0
        self._outlier = outlier(updates)

    def _skip(self, round_: int, admission: Admission[FitRes]) -> None:
        """A round with too few results: nothing that is common changes, but clients went on from it. So
        none is sent a change to what it held before, or told of its part in a mean."""
        least = at_least(self.min_results, self._needed)
        told = f"federation.min_results={self.min_results:g} asks for {least} results"
        if self.fewest > least:
            told = f"{type(self.inner).__name__} holds with {self.fewest} results or more"
        if self._outlier:
            told += f"; in the last round that counted {self._outlier}"
        self.attendance.skip(round_, len(self._turns), admission, told)
        self.downlink.forget()
        self._examples = {}


def warn_of(admission: Admission[Any]) -> None:
    """In the log, who did not answer, and whose answer was not taken as it was."""
    for remark in admission.remarks:
        log.warning("%s", remark, extra={"client": remark.client})
