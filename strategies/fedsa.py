"""FedSA: a Flower strategy around a Flower strategy, for messages that carry part of an adapter.

The inner strategy samples the clients and does the arithmetic, on plain float32 vectors of
values. ``FedSA`` says what is shared and sends it, admits or rejects what comes back, orders it by
client, and keeps the record of the round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, Parameters, Scalar, ndarrays_to_parameters
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.exchange.arrays import Layout, NamedArrays, Vector
from fedsa_lora.exchange.codec import Codec, Dense
from fedsa_lora.exchange.measure import CLASSES, Measure
from fedsa_lora.exchange.reported import of_evaluation, of_training
from fedsa_lora.exchange.split import SplitPolicy
from strategies.audience import Audience, Everyone
from strategies.plans.plan import plan_of
from strategies.round.admission import Admission, Failure, admit
from strategies.round.attendance import Attendance
from strategies.round.bounds import Bounds, Rejections, believed, bounded, outlier
from strategies.round.broadcasts import Broadcaster
from strategies.round.decoding import Decoder
from strategies.round.downlink import Downlink
from strategies.round.ledger import Evaluation, Ledger, Recorder
from strategies.round.open_round import OpenRound, asked_state
from strategies.round.reasons import causes
from strategies.round.roster import Roster, at_least
from strategies.round.totals import Totals
from strategies.rules.abilities import fewest_results, layers, needed_clients, signs_loss
from strategies.rules.combining import Combiner
from strategies.rules.exactness import Frozen
from strategies.rules.flower import rule_for
from strategies.rules.updates import Update


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
        Which of them are shared in which round; the plan that carries it out is ``plan_of`` it.
    codec, downlink : Codec
        How uploads are coded, and broadcasts to clients that saw the one before (None: always whole).
    audience : Audience
        Who is sent which common vector; None: all clients one, by ``downlink``.
    ranks : mapping
        The ranks of clients whose adapter is smaller than the layout's.
    tell_total : bool
        Tell the clients of a mean how many examples all of them had, so that each can take its own part off.
    classes : int
        How many classes clients tell the counts of, by which a shared head is averaged; 0: they tell none.
    frozen : Frozen
        The factors that all clients hold at the same value and nobody trains, to measure the aggregation
        error with; None where the server does not know them.
    roster : Roster
        Who the clients are, and who takes part in a round.
    evaluation : Evaluation
        When all clients are evaluated, also those that were not sampled.
    recorder : Recorder
        Receives one row per client and phase, one per round, and the common vector.
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
        roster: Roster,
        evaluation: Evaluation,
        recorder: Recorder,
        codec: Codec | None = None,
        downlink: Codec | None = None,
        audience: Audience | None = None,
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
        if audience is not None and downlink is not None:
            raise ConfigError("downlink: it encodes for the audience that FedSA creates; give one of the two")
        self.inner, self.layout, self.split = inner, layout, split
        self.codec = codec or Dense()
        self.roster, self.evaluation, self.min_results = roster, evaluation, min_results
        self.bounds, self.measures = bounds or Bounds(), measures
        self.plan = plan_of(split, layout)
        self.audience = audience or Everyone(Downlink(layout, initial, downlink, roster.seed))
        self.rule = rule_for(inner, layout)
        self.combine = Combiner(self.rule, split, layout, frozen)
        self.fewest = max(
            fewest_results(type(layer), getattr(layer, "num_malicious_clients", 0)) for layer in layers(inner)
        )
        self.totals = Totals(tell_total)
        self.attendance = attendance or Attendance()
        self.rejections = Rejections(self.bounds.max_rejections)
        self.decode = Decoder(layout, self.codec, ranks or {}, classes, uniform, self.plan.scores)
        self.ledger, self.recorder = Ledger(recorder, measures[0]), recorder
        self.broadcast = Broadcaster(
            layout, ranks or {}, self.audience, self.totals, self.ledger, run, resumed
        )
        self.round = OpenRound()

    @property
    def common(self) -> Vector:
        """The vector that is common to all clients, (layout.size,) float32; of groups, to the largest."""
        return self.audience.common

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """The common start: no client is asked, and no backbone is loaded."""
        return ndarrays_to_parameters([self.common])

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """The inner strategy's choice of clients, each sent what it lacks and is asked for its turn."""
        self.ledger.begin()
        excluded = self.attendance.excluded(server_round)
        there = self.roster.at(server_round, client_manager, excluded, self.min_results)
        chosen = self.inner.configure_fit(
            server_round=server_round,
            parameters=ndarrays_to_parameters([self.common]),
            client_manager=there,
        )
        sampled = [self.roster.name(proxy) for proxy, _ in chosen]
        everyone = [self.roster.name(proxy) for proxy in there.ordered]
        turns = self.plan.turns(server_round, [*everyone, *sampled])
        self.round = OpenRound(
            number=server_round,
            turns=turns,
            asked={client: turns[client] for client in sampled},
            needed=there.needed,
            present=len(everyone),
            excluded=there.left_out,
            absent=self.roster.remarks,
        )
        configs = [ins.config for _, ins in chosen]
        asked = {"round": server_round, "measure_before": self.evaluation.compares_before(server_round)}
        messages = self.broadcast(FitIns, self.round.asked, configs, **asked)
        return list(zip((proxy for proxy, _ in chosen), messages, strict=True))

    def further(self, client: str, result: FitRes | EvaluateRes) -> dict[str, Scalar] | None:
        """The config of a further message to a client after its answer: none, one answer is all of it."""
        return None

    def aggregate_fit(
        self, server_round: int, results: list[tuple[ClientProxy, FitRes]], failures: list[Failure[FitRes]]
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Admit, bound, order by client, aggregate, keep float32, record; or skip the round."""
        before, signed = self.evaluation.compares_before(server_round), signs_loss(self.inner)
        numbers = of_training(self.measures, before, signed)
        decode = partial(self.decode, self.round.asked)
        admission = admit(server_round, results, failures, self.roster.name, numbers, decode=decode)
        admission = bounded(admission, self.layout, self.bounds)
        admission.warn()
        answered = {answer.header.client for answer in admission.answers}
        self.attendance.note(server_round, self.round.asked, answered)
        if missing := sorted(needed_clients(self.inner, server_round) - answered):
            told = f"round {server_round} is incomplete without the answer of {missing}: resume the run"
            raise RunError("\n".join([told, *causes(admission.failures)]))
        enough = len(answered) >= max(self.fewest, at_least(self.min_results, self.round.needed))
        seen = admission.with_remarks(admission.answers, self.round.absent)
        row = self.round.row(self.layout, self.split.adaptive)
        self.ledger.fit(server_round, seen, row | {"skipped": not enough})
        self.rejections.count(admission)
        if enough:
            self._take(server_round, [answer.value for answer in admission.answers])
        else:
            self._skip(server_round, admission)
        self.recorder.checkpoint(server_round, self.layout, self.common, self.memory())
        if not self.evaluation.held(server_round, self.attendance.skipped):
            self.ledger.close(evaluated=False)
        return ndarrays_to_parameters([self.common]), {}

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Every client that is there and not left out, with what was just aggregated, when a round is due."""
        if not self.evaluation.held(server_round, self.attendance.skipped):
            return []
        excluded = self.attendance.excluded(server_round)
        there = self.roster.everyone(client_manager)
        everyone = [proxy for proxy in there if self.roster.name(proxy) not in excluded]
        names = [self.roster.name(proxy) for proxy in everyone]
        came = [name for name in names if name not in self.round.turns]  # during the round
        known = {**self.round.turns, **self.plan.turns(server_round, came)}
        turns = self.audience.after(server_round, {name: known[name] for name in names})
        asked = {"round": server_round, "reference": self.evaluation.trains_alone(server_round)}
        messages = self.broadcast(EvaluateIns, turns, [{}] * len(turns), **asked)
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
        if not self.evaluation.held(server_round, self.attendance.skipped):
            return None, {}
        numbers = of_evaluation(self.measures, self.evaluation.trains_alone(server_round))
        admission = admit(server_round, results, failures, self.roster.name, numbers)
        admission = believed(admission, self.bounds)
        admission.warn()
        since_training = [remark for remark in self.roster.remarks if remark not in self.round.absent]
        rows = self.ledger.evaluate(admission.with_remarks(admission.answers, since_training))
        if not rows and server_round == self.evaluation.rounds:
            told = ["no client answered the last evaluation", *causes(admission.failures)]
            raise RunError("\n".join(told))
        measured = [row for row in rows if row["measured"]]
        self.ledger.close(evaluated=bool(measured))
        return self.ledger.reached(measured)

    def evaluate(self, server_round: int, parameters: Parameters) -> None:
        """Nothing: the server holds no backbone and no data."""
        return

    def memory(self) -> dict[str, NDArray[Any]]:
        """The state that ``restore`` goes on from, beside the common vector: that of plan, audience and rule,
        who is in the mean with how many examples, and who failed and was rejected how often. Where the split
        adapts, also what each client is asked to share."""
        counts = self.totals.state() | self.attendance.state() | self.rejections.state()
        memory = self.audience.state() | counts | self.rule.state() | self.plan.state()
        if self.split.adaptive:
            memory |= asked_state(self.layout, self.audience.after(self.round.number, self.round.turns))
        return memory

    def restore(self, round_: int, common: Vector, memory: NamedArrays) -> None:
        """Go on after a round from its checkpoint, to the same bits as without the break."""
        self.plan.restore(memory)
        self.audience.restore(round_, common, memory)
        self.rule.restore(common, memory)
        for part in (self.totals, self.attendance, self.rejections):
            part.restore(memory)

    def _take(self, round_: int, updates: Sequence[Update]) -> None:
        """A round that counts: each mean into its vector, and what there is to learn from it."""
        together = self.audience.together(updates)
        errors = [self.combine(round_, downlink, members) for downlink, members in together.items()]
        largest = max((error for error in errors if error is not None), default=None)
        self.ledger.aggregated({"aggregation_error": largest})
        self.ledger.aggregated(self.plan.learn(round_, [*together.values()]))
        self.ledger.aggregated(self.audience.learn(round_, self.round.turns, updates))
        self.totals.learn(updates)
        self.attendance.count(outlier(updates))

    def _skip(self, round_: int, admission: Admission[FitRes]) -> None:
        """A round with too few results: nothing that is common changes, but clients went on from it. So
        none is sent a change to what it held before, or told of its part in a mean."""
        least = at_least(self.min_results, self.round.needed)
        told = f"federation.min_results={self.min_results:g} asks for {least} results"
        if self.fewest > least:
            told = f"{type(self.inner).__name__} needs {self.fewest} results or more"
        self.attendance.skip(round_, len(self.round.asked), admission, told)
        self.audience.forget()
        self.totals.forget()
