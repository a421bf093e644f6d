"""A client of split learning: it holds the first and the last blocks, and takes its steps with the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from flwr.common import NDArray as FlowerArray
from flwr.common import Scalar

from fedsa_lora.client.client import FedSAClient, check_measured
from fedsa_lora.client.egress import told
from fedsa_lora.client.session import Measuring, Session, Training
from fedsa_lora.client.workbench import Workbench
from fedsa_lora.errors import FedSAError, LeakError, WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.reported import LOSS
from fedsa_lora.exchange.step import DOWN, Step, is_step
from fedsa_lora.learning.cut.parts import Ends
from fedsa_lora.learning.job import Outcome
from fedsa_lora.seeds import generator
from fedsa_lora.store import ClientState, DirectoryStore
from fedsa_lora.tasks.token_losses import IGNORED

WITNESSED = 8  # tokens in a row that are searched for in what leaves
INTEGERS = ("<i8", "<i4", "<u2")  # number formats in which ids could leave


@dataclass(frozen=True)
class Answer:
    """As Flower has it: arrays, number of examples, metrics, and the loss of an evaluation."""

    arrays: list[FlowerArray]
    examples: int
    metrics: dict[str, Scalar]
    loss: float = 0.0


class CutClient(FedSAClient):
    """One client of split learning (arXiv:1812.00564) in a federation that shares as FedSA-LoRA does.

    A round or an evaluation is one exchange: the server's broadcast opens it, states and gradients go up and
    down, and the last answer is that of any other client. Between two messages it is kept on the client's
    disk, so that any process of the client can answer the next one.
    """

    def __init__(
        self, client: str, bench: Workbench, store: DirectoryStore, forbid: Sequence[str] = ()
    ) -> None:
        super().__init__(client, bench, store, forbid)
        assert bench.cut is not None
        assert bench.step_format is not None
        self.format = bench.step_format
        self.ends = Ends(bench.model.module, bench.cut)
        self.folder = store.folder

    def fit(
        self, parameters: list[FlowerArray], config: dict[str, Scalar]
    ) -> tuple[list[FlowerArray], int, dict[str, Scalar]]:
        """One message of a round: that which opens it, or a step. A fault is answered as any other client's
        is, and ends the exchange; the stored state is then still that of the round before."""
        answer = self._answered(Training, parameters, config)
        return answer.arrays, answer.examples, answer.metrics

    def evaluate(
        self, parameters: list[FlowerArray], config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """One message of an evaluation: metrics of bottom and top, with the server's trunk between them, on
        the client's held-out part."""
        answer = self._answered(Measuring, parameters, config)
        return answer.loss, answer.examples, answer.metrics

    def _answered(
        self,
        kind: type[Training] | type[Measuring],
        parameters: list[FlowerArray],
        config: Mapping[str, Scalar],
    ) -> Answer:
        round_ = 0
        try:
            if is_step(config):
                session = self._resumed(kind)
                step = self.format.read(config, DOWN)
                round_ = session.header.round
            else:
                session, step = self._opened(kind, parameters, config), Step(0)
                round_ = session.header.round
            with self.store.locked():
                return self._next(session, step)
        except FedSAError as error:
            self._end()
            header = self.rounds.header(round_, 0, error=told(error))
            return Answer([np.zeros(0, np.float32)], 0, dict(wire.write_header(header)))

    def _opened(
        self,
        kind: type[Training] | type[Measuring],
        parameters: list[FlowerArray],
        config: Mapping[str, Scalar],
    ) -> Session:
        header = wire.read_header(config, wire.BroadcastHeader)
        self.store.claim(header.run, header.resumed, self.bench.data_digest)
        if kind is Measuring:
            self.store.count_evaluation(header.round)
        return self._session(kind, header, parameters)

    def _session(
        self,
        kind: type[Training] | type[Measuring],
        header: wire.BroadcastHeader,
        parameters: list[FlowerArray],
    ) -> Session:
        if kind is Training:
            state, mean_of = self.store.before(header.round), header.round - 1
        else:
            state, mean_of = self.store.load(header.round), header.round
        opened = self.rounds.open(header, parameters, state, mean_of=mean_of)
        local = self.model.local(header.round, opened.parts.trained, opened.values)
        if kind is Measuring:
            local = self.model.local(header.round, frozenset(), opened.values, examples=self.model.held_out)
        return kind(header, parameters, opened, local, self.bench, self.ends)

    def _resumed(self, kind: type[Training] | type[Measuring]) -> Session:
        """The exchange that is under way, as this process or another one of this client left it."""
        kept = Session.last(self.folder)
        if kept is None:
            raise WireError("is asked for a step, and no exchange is open here: the round begins anew")
        header = kept.header
        self.store.claim(header.run, header.resumed, self.bench.data_digest)
        session = self.bench.sessions.get(self.client)
        if session is None or not session.is_at(kept):
            session = self._session(kind, header, kept.parameters)
            session.restore(kept)
        if type(session) is not kind:
            raise WireError("is asked for a step of another exchange than the one that is open")
        return session

    def _next(self, session: Session, step: Step) -> Answer:
        """The answer to a message; to one that is repeated, the same again."""
        entries = session.repeated(step.number)
        if entries is None:
            answered = session.advance(step)
            if answered is None:
                return self._closed(session)
            rng = generator(self.bench.seed, "cut", self.client, session.header.round, step.number)
            entries = self.format.write(answered, rng)
            self._witness(session, entries)
            session.keep(self.folder, entries)
            self.bench.sessions[self.client] = session
        return Answer([], len(self.rounds.train), dict(entries))

    def _closed(self, session: Session) -> Answer:
        train = len(self.rounds.train)
        if isinstance(session, Training):
            outcome = Outcome(session.opened.values, session.trained.values(), session.report)
            closed = self.rounds.close(session.opened, outcome, {}, {}, train)
            numbers = {k: float(v) for k, v in asdict(session.report).items() if k != "examples"}
            self._save(closed.state)
            rng = generator(self.bench.seed, "cut", self.client, session.header.round)
            entries = self.format.write(session.farewell, rng)
            header = wire.write_header(replace(closed.header, report=numbers))
            return Answer([closed.payload], train, {**header, **entries})
        assert isinstance(session, Measuring)
        measured = len(self.model.held_out)
        report = session.measured(self.bench.task) if measured else {}
        check_measured(report)
        self._end()
        upload = self.rounds.header(session.header.round, train, measured=measured, report=report)
        return Answer([], measured, dict(wire.write_header(upload)), report.get(LOSS, 0.0))

    def _save(self, state: ClientState) -> None:
        self.store.save(state)
        self._end()

    def _end(self) -> None:
        self.bench.sessions.pop(self.client, None)
        Session.forget(self.folder)

    def _witness(self, session: Session, entries: Mapping[str, str | bytes]) -> None:
        """Raise LeakError where ids of the examples at hand stand in what would leave."""
        contents = [content for content in entries.values() if isinstance(content, bytes)]
        for ids in session.ids():
            learned = ids[ids != IGNORED][:WITNESSED]
            patterns = [learned.astype(form).tobytes() for form in INTEGERS if len(learned) == WITNESSED]
            if any(pattern in content for pattern in patterns for content in contents):
                raise LeakError("a step holds ids of this client's texts and was not sent")
