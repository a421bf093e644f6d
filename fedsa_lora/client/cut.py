"""A client of split learning: it holds the first and the last blocks, and takes its steps with the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.common import NDArray as FlowerArray
from flwr.common import Scalar

from fedsa_lora.client.client import FedSAClient, check_measured
from fedsa_lora.client.cut_bench import CutBench
from fedsa_lora.client.egress import told
from fedsa_lora.client.exchanges import Measurement, Steps
from fedsa_lora.client.session import Answer, Kept, Session
from fedsa_lora.errors import FedSAError, LeakError, WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.reported import LOSS
from fedsa_lora.exchange.step import DOWN, Step, is_step
from fedsa_lora.learning.cut.parts import Ends
from fedsa_lora.learning.job import Outcome
from fedsa_lora.seeds import generator
from fedsa_lora.store import DirectoryStore
from fedsa_lora.tasks.token_losses import IGNORED

WITNESSED = 8  # tokens in a row that are searched for in what leaves
INTEGERS = ("<i8", "<i4", "<u2")  # number formats in which ids could leave


class CutClient(FedSAClient):
    """One client of split learning (arXiv:1812.00564) in a federation that shares as FedSA-LoRA does.

    A round or an evaluation is one exchange: the server's broadcast opens it, states and gradients go up and
    down, and the last answer is that of any other client. Between two messages it is kept on the client's
    disk, so that any process of the client can answer the next one.
    """

    bench: CutBench

    def __init__(
        self, client: str, bench: CutBench, store: DirectoryStore, forbid: Sequence[str] = ()
    ) -> None:
        super().__init__(client, bench, store, forbid)
        self.format = bench.step_format
        self.ends = Ends(bench.model.module, bench.cut)
        self.folder = store.folder

    def fit(
        self, parameters: list[FlowerArray], config: dict[str, Scalar]
    ) -> tuple[list[FlowerArray], int, dict[str, Scalar]]:
        """One message of a round: that which opens it, or a step. A fault is answered as any other client's
        is, and ends the exchange; the stored state is then still that of the round before."""
        answer = self._answered(Steps, parameters, config)
        return answer.arrays, answer.examples, answer.metrics

    def evaluate(
        self, parameters: list[FlowerArray], config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """One message of an evaluation: metrics of bottom and top, with the server's trunk between them, on
        the client's held-out part."""
        answer = self._answered(Measurement, parameters, config)
        return answer.loss, answer.examples, answer.metrics

    def _answered(
        self,
        kind: type[Session],
        parameters: list[FlowerArray],
        config: Mapping[str, Scalar],
    ) -> Answer:
        try:
            with self.store.locked():
                return self._locked(kind, parameters, config)
        except FedSAError as error:  # as in _locked, but that the exchange is another process's
            return self._refused(0, error)

    def _locked(
        self, kind: type[Session], parameters: list[FlowerArray], config: Mapping[str, Scalar]
    ) -> Answer:
        round_ = 0
        try:
            if not is_step(config):
                session = self._opened(kind, parameters, config)
                round_ = session.header.round
                return self._next(session, Step(0))
            kept = self._kept()
            round_ = kept.header.round
            step = self.format.read(config, DOWN)
            if step.number == kept.number:  # the answer was lost on its way
                return kept.answer
            return self._next(self._resumed(kind, kept), step)
        except FedSAError as error:
            self.bench.sessions.pop(self.client, None)
            Session.forget(self.folder)
            return self._refused(round_, error)

    def _refused(self, round_: int, error: FedSAError) -> Answer:
        header = self.rounds.header(round_, 0, error=told(error))
        return Answer([np.zeros(0, np.float32)], 0, dict(wire.write_header(header)))

    def _opened(
        self,
        kind: type[Session],
        parameters: list[FlowerArray],
        config: Mapping[str, Scalar],
    ) -> Session:
        header = wire.read_header(config, wire.BroadcastHeader)
        self.store.claim(header.run, header.resumed, self.bench.data_digest)
        if kind is Measurement:
            self.store.count_evaluation(header.round)
        return self._session(kind, header, parameters)

    def _session(
        self,
        kind: type[Session],
        header: wire.BroadcastHeader,
        parameters: list[FlowerArray],
    ) -> Session:
        if kind is Steps:
            state, mean_of = self.store.before(header.round), header.round - 1
        else:
            state, mean_of = self.store.load(header.round), header.round
        opened = self.rounds.open(header, parameters, state, mean_of=mean_of)
        local = self.model.local(header.round, opened.parts.trained, opened.values)
        if kind is Measurement:
            local = self.model.local(header.round, frozenset(), opened.values, examples=self.model.held_out)
        return kind(header, parameters, opened, local, self.bench, self.ends)

    def _kept(self) -> Kept:
        """The exchange that is under way, as this process or another one of this client left it."""
        kept = Session.last(self.folder)
        if kept is None:
            raise WireError("received a step without an open exchange: the round starts again")
        self.store.claim(kept.header.run, kept.header.resumed, self.bench.data_digest)
        return kept

    def _resumed(self, kind: type[Session], kept: Kept) -> Session:
        if kept.words["kind"] != kind.__name__:
            raise WireError("received a step of another exchange than the open one")
        session = self.bench.sessions.get(self.client)
        if session is None or not session.is_at(kept):
            session = self._session(kind, kept.header, kept.parameters)
            session.restore(kept)
        return session

    def _next(self, session: Session, step: Step) -> Answer:
        """The answer to the next message of an exchange; the exchange is kept as it then stands."""
        answered = session.advance(step)
        if answered is None:
            self.bench.sessions.pop(self.client, None)
            answer = self._closed(session)
        else:
            rng = generator(self.bench.seed, "cut", self.client, session.header.round, step.number)
            entries = self.format.write(answered, rng)
            self._witness(session, entries)
            self.bench.sessions[self.client] = session
            answer = Answer([], len(self.rounds.train), dict(entries))
        session.keep(self.folder, answer)
        return answer

    def _closed(self, session: Session) -> Answer:
        """The last answer: a client's as in any other run."""
        train, round_ = len(self.rounds.train), session.header.round
        if isinstance(session, Steps):
            outcome = Outcome(session.opened.values, session.trained.values(), session.report)
            closed = self.rounds.close(session.opened, outcome, {}, {}, train)
            self.store.save(closed.state)
            header = wire.write_header(replace(closed.header, report=session.report.numbers()))
            entries = self.format.write(session.farewell, generator(self.bench.seed, "cut", round_))
            return Answer([closed.payload], train, {**header, **entries})
        assert isinstance(session, Measurement)
        measured = len(self.model.held_out)
        report = session.measured(self.bench.task) if measured else {}
        check_measured(report, self.bench.task)
        upload = self.rounds.header(round_, train, measured=measured, report=report)
        return Answer([], measured, dict(wire.write_header(upload)), report.get(LOSS, 0.0))

    def _witness(self, session: Session, entries: Mapping[str, str | bytes]) -> None:
        """Raise LeakError where ids of the examples at hand stand in what would leave."""
        contents = [content for content in entries.values() if isinstance(content, bytes)]
        for ids in session.ids():
            learned = ids[ids != IGNORED][:WITNESSED]
            patterns = [learned.astype(form).tobytes() for form in INTEGERS if len(learned) == WITNESSED]
            if any(pattern in content for pattern in patterns for content in contents):
                raise LeakError("a step contains token ids of this client's texts and was not sent")
