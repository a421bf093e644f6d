"""FedSA: a Flower strategy around a Flower strategy, for messages that carry part of an adapter.

The inner strategy samples the clients and does the arithmetic, on plain float32 vectors of
values. ``FedSA`` decides what is shared and sends it, admits or rejects answers, orders them by client,
and keeps the record of the round.
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
from strategies.round.admission import Admission, Failure, admit, check_measurable
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
        Their initial values, (layout.size,) float32.
    split : SplitPolicy
        Policy for the tensors shared in each round; its plan is ``plan_of`` it.
    codec, downlink : Codec
        Compression of uploads, and of broadcasts to clients that have the previous one (None: always full).
    audience : Audience
        The common vector that each client is sent; None: one for all, by ``downlink``.
    ranks : mapping
        The ranks of clients whose adapter is smaller than the layout's.
    tell_total : bool
        Send clients the number of examples in a mean, so that each can compute its leave-one-out mean.
    classes : int
        Classes whose counts clients report, to average a shared head by them; 0: none are reported.
    frozen : Frozen
        Factors that are frozen at the same value on all clients, to measure the aggregation error; None
        where the server does not know them.
    roster : Roster
        The clients, and the sampling of a round.
    evaluation : Evaluation
        The rounds in which all clients are evaluated, also those that were not sampled.
    recorder : Recorder
        Receives one row per client and phase, one per round, and the common vector.
    uniform : bool
        Weight all clients equally, whatever their numbers of train examples.
    bounds : Bounds
        Limits of the norm of an upload, of its examples and of the share rejected; None: no bounds.
    measures : sequence of Measure
        The measures of the task, the primary one first: clients may report only these, each in its range.
        By default those of classification.
    min_results : float
        Share of the clients of a round that must return valid results. With fewer the round is skipped
        and shared values stay unchanged.
    attendance : Attendance
        Excludes clients that keep failing, and limits the rounds skipped in a row: then the run ends with
        RunError, which names the clients that failed and why.
    run, resumed : str, int
        Name of the run for its clients, and how often it was resumed: a client's store serves one run, and
        returns to an earlier round only after a resume.
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
        """The vector shared by all clients, (layout.size,) float32; with groups, that of the largest."""
        return self.audience.common

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """The initial shared values: no client is asked, and no backbone is loaded."""
        return ndarrays_to_parameters([self.common])

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """The clients sampled by the inner strategy, each with its broadcast and its part of the round."""
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
        """The config of a further message to a client after its answer: none, a round has one answer."""
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
        """All connected, not excluded clients, with the new shared values, when an evaluation is due."""
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
        """The primary measure of personalised models over the evaluated clients: mean weighted by test
        examples, and the worst. Raises RunError where none answers in the last round: the run has no
        result."""
        if not self.evaluation.held(server_round, self.attendance.skipped):
            return None, {}
        numbers = of_evaluation(self.measures, self.evaluation.trains_alone(server_round))
        admission = admit(server_round, results, failures, self.roster.name, numbers)
        admission = believed(admission, self.bounds)
        admission.warn()
        since_training = [remark for remark in self.roster.remarks if remark not in self.round.absent]
        rows = self.ledger.evaluate(admission.with_remarks(admission.answers, since_training))
        if not rows:
            check_measurable(server_round, self.evaluation.rounds, admission.failures)
        measured = [row for row in rows if row["measured"]]
        self.ledger.close(evaluated=bool(measured))
        return self.ledger.reached(measured)

    def evaluate(self, server_round: int, parameters: Parameters) -> None:
        """Nothing: the server holds no backbone and no data."""
        return

    def memory(self) -> dict[str, NDArray[Any]]:
        """The state for ``restore``, besides the common vector: that of plan, audience and rule, the clients
        and examples in the mean, and counts of failures and rejections. Where the split adapts, also the
        tensors that each client is asked to share."""
        counts = self.totals.state() | self.attendance.state() | self.rejections.state()
        memory = self.audience.state() | counts | self.rule.state() | self.plan.state()
        if self.split.adaptive:
            memory |= asked_state(self.layout, self.audience.after(self.round.number, self.round.turns))
        return memory

    def restore(self, round_: int, common: Vector, memory: NamedArrays) -> None:
        """Resume after a round from its checkpoint, bit-identical to an uninterrupted run."""
        self.plan.restore(memory)
        self.audience.restore(round_, common, memory)
        self.rule.restore(common, memory)
        for part in (self.totals, self.attendance, self.rejections):
            part.restore(memory)

    def _take(self, round_: int, updates: Sequence[Update]) -> None:
        """Take a valid round: each mean into its vector, and the plan's update from it."""
        together = self.audience.together(updates)
        errors = [self.combine(round_, downlink, members) for downlink, members in together.items()]
        largest = max((error for error in errors if error is not None), default=None)
        self.ledger.aggregated({"aggregation_error": largest})
        self.ledger.aggregated(self.plan.learn(round_, [*together.values()]))
        self.ledger.aggregated(self.audience.learn(round_, self.round.turns, updates))
        self.totals.learn(updates)
        self.attendance.count(outlier(updates))

    def _skip(self, round_: int, admission: Admission[FitRes]) -> None:
        """Skip a round with too few results: shared values stay unchanged, but clients have trained on from
        them. So none is sent a difference to its earlier values, or its part in a mean."""
        least = at_least(self.min_results, self.round.needed)
        told = f"federation.min_results={self.min_results:g} asks for {least} results"
        if self.fewest > least:
            told = f"{type(self.inner).__name__} needs {self.fewest} results or more"
        self.attendance.skip(round_, len(self.round.asked), admission, told)
        self.audience.forget()
        self.totals.forget()
