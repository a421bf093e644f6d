"""Clients by name: Flower's node ids change from run to run, a client's own id does not."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Collection

from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.criterion import Criterion

from fedsa_lora.errors import RunError
from fedsa_lora.seeds import generator
from strategies.round.admission import Remark
from strategies.round.naming import QUERY_SECONDS, Naming, Present, Registry
from strategies.round.reasons import causes

POLL_SECONDS = 0.25
TOLD_SECONDS = 60.0  # between two lines that say what a run waits for
log = logging.getLogger("flwr")


class Roster:
    """Learns which client is behind each node, and draws samples from names, seed and round alone.

    At the start it waits up to ``wait_seconds`` until the ``expected`` clients are there and have said who
    they are, and continues with fewer, down to the share ``least`` of them; later it waits as long only where
    fewer than that are there. So a node that does not answer costs a run one wait: it is left out, and
    its answer is looked for in every phase, without waiting. ``wait_seconds`` None is a simulation: its
    clients are waited for as long as the process lives that simulates them, and there must be a node, which
    has ``per_node`` of them, for each and no more.

    ``registry`` reads the clients by public key, see ``Naming``. ``over_select``: how many times the clients
    that a round needs are sampled. ``remarks`` are on the nodes that were left out of the last phase.

    Raises RunError when too few are there at the start, or in a simulation too many, or when two nodes are
    the same client then; ConfigError for a registry that cannot be read.
    """

    def __init__(
        self,
        seed: int,
        expected: int,
        wait_seconds: float | None = 120,
        *,
        least: float = 1.0,
        registry: Registry | None = None,
        over_select: float = 1.0,
        per_node: int = 1,
    ) -> None:
        self.seed, self.expected, self.wait_seconds = seed, expected, wait_seconds
        self.over_select, self.per_node = over_select, per_node
        self.least = at_least(least, expected)
        self.remarks: list[Remark] = []
        valid = None if wait_seconds is None else max(wait_seconds, QUERY_SECONDS)
        self._naming = Naming(registry, valid)
        self._names: dict[str, str] = {}  # of the nodes that are clients, by node id
        self._present: int | None = None  # how many there were last

    def name(self, proxy: ClientProxy) -> str:
        """The client behind a node; the node's id while it is unknown."""
        return self._names.get(proxy.cid, proxy.cid)

    def at(
        self,
        round_: int,
        manager: ClientManager,
        excluded: Collection[str] = (),
        min_results: float = 1.0,
    ) -> RoundManager:
        """A view of the manager whose samples depend on (seed, round) and the names only, without the
        clients that are ``excluded``, as long as ``min_results`` of what is asked for are left."""
        return RoundManager(manager, self.everyone(manager), self, round_, excluded, min_results)

    def everyone(self, manager: ClientManager) -> list[ClientProxy]:
        """All nodes that are clients of this run, ordered by client id."""
        begins = self._present is None
        self._naming.begin()
        there = self._gather(manager, self.expected if begins else self.least)
        self._note(there, waited=begins and len(there.clients) < self.expected)
        if begins:
            self._check_start(there)
        known = there.clients
        if len(known) != self._present and (len(known) < self.expected or not begins):
            log.warning("%d of %d clients are there", len(known), self.expected)
        self._present = len(known)
        self._names |= {proxy.cid: name for name, proxy in known.items()}
        for cid in there.refused:
            self._names.pop(cid, None)
        return [known[name] for name in sorted(known)]

    def _gather(self, manager: ClientManager, target: int) -> Present:
        """Wait until ``target`` clients are known, or as many nodes are there and all have answered. The
        nodes of a simulation are there before one can answer: when all have, no other will come."""
        began = told = time.monotonic()
        while True:
            # Flower looks for new nodes when it is asked for all, and changes what it returned later
            nodes = dict(manager.all())
            there = self._naming.look(nodes)
            now = time.monotonic()
            if self._is_settled(there, len(nodes), target) or self._is_over(now - began):
                break
            if now - told >= TOLD_SECONDS:
                self._tell_waiting(len(there.clients), now - began)
                told = now
            time.sleep(POLL_SECONDS)
        if told > began:
            count = len(there.clients)
            log.warning("%d of %d clients are there after %.0f s", count, self.expected, now - began)
        return there

    def _is_settled(self, there: Present, nodes: int, target: int) -> bool:
        """True where nothing is left to wait for: enough clients are known, so many nodes are there and have
        all answered, or a run cannot start with those that have."""
        if len(there.clients) >= target:
            return True
        if self._present is None and there.twice:
            return True
        enough = 1 if self.wait_seconds is None else target
        return nodes - len(there.refused) >= enough and not there.pending

    def _is_over(self, waited: float) -> bool:
        """True at the end of a wait: at its deadline or, in a simulation, with the main thread of this
        process, which simulates the clients and outlives its own end as long as this thread does."""
        if self.wait_seconds is None:
            return not threading.main_thread().is_alive()
        return waited >= self.wait_seconds

    def _tell_waiting(self, known: int, waited: float) -> None:
        what = "still starting Ray" if self.wait_seconds is None else "still waiting for nodes"
        log.warning("%s: %d of %d clients after %.0f s", what, known, self.expected, waited)

    def _note(self, there: Present, waited: bool) -> None:
        """Take in which nodes are left out of this phase and why, and log what was not known before. One that
        was asked less than ``wait_seconds`` ago, and was not ``waited`` for, is not called silent yet."""
        patience = QUERY_SECONDS if self.wait_seconds is None else self.wait_seconds
        silent = []
        for cid, remark in there.pending.items():
            if waited or self._naming.waited(cid) >= patience:
                silent.append(remark)
        remarks = sorted([*there.refused.values(), *there.failed.values(), *silent], key=str)
        for remark in remarks:
            if remark not in self.remarks:
                log.warning("%s", remark)
        self.remarks = remarks

    def _check_start(self, there: Present) -> None:
        """Raise RunError where a run cannot start with the clients that are there."""
        if there.twice:
            raise RunError(
                f"two nodes have the same client id {there.twice}: give each its own client-id, or bind "
                "names to keys with federation.registry"
            )
        if self.wait_seconds is None:
            self._check_simulation(there.nodes)
        known = len(there.clients)
        if known >= self.least:
            return
        found = f"{known} of {self.expected} clients"
        if self.remarks:
            reason = f"{found} reported their client id, {len(self.remarks)} nodes did not"
        else:
            reason = (
                f"{found} are connected after {self.wait_seconds:g} s: start the missing nodes, or lower "
                "federation.clients or federation.min_clients"
            )
        raise RunError("\n".join([reason, *causes(self.remarks)]))

    def _check_simulation(self, simulated: int) -> None:
        """Raise RunError where the simulation was started with another number of nodes than the run has: some
        clients' data would not be used, or be used twice."""
        if simulated == self.expected:
            return
        nodes = self.expected // self.per_node
        raise RunError(
            f"{simulated} of {self.expected} clients are simulated: start the simulation with num-supernodes="
            f"{nodes} (flwr run --federation-config num-supernodes={nodes}), or set federation.clients="
            f"{simulated} (in an app of your own its argument `clients`)"
        )


def at_least(share: float, of: int) -> int:
    """The smallest whole number, from 1, that is this share of another."""
    return max(1, math.ceil(share * of - 1e-9))  # 1.1 times 10 is a little more than 11


class RoundManager(ClientManager):
    """The clients of one round as an inner strategy sees them: as many as there should be, of whom those
    are sampled that are there. ``needed`` is how many it asked for, ``left_out`` who was excluded."""

    def __init__(
        self,
        manager: ClientManager,
        ordered: list[ClientProxy],
        roster: Roster,
        round_: int,
        excluded: Collection[str],
        min_results: float,
    ) -> None:
        self.ordered, self.needed, self.left_out = ordered, 0, list[str]()
        self._manager, self._roster = manager, roster
        self._excluded, self._min_results = excluded, min_results
        self._rng = generator(roster.seed, "sample", round_)

    def num_available(self) -> int:
        return max(len(self.ordered), self._roster.expected)

    def register(self, client: ClientProxy) -> bool:
        return self._manager.register(client)

    def unregister(self, client: ClientProxy) -> None:
        self._manager.unregister(client)

    def all(self) -> dict[str, ClientProxy]:
        return {proxy.cid: proxy for proxy in self.ordered}

    def wait_for(self, num_clients: int, timeout: int = 0) -> bool:
        return len(self.ordered) >= num_clients

    def sample(
        self, num_clients: int, min_num_clients: int | None = None, criterion: Criterion | None = None
    ) -> list[ClientProxy]:
        eligible = [proxy for proxy in self.ordered if criterion is None or criterion.select(proxy)]
        if num_clients > len(eligible) + self.num_available() - len(self.ordered):
            raise RunError(
                f"the strategy asks for {num_clients} clients, {len(eligible)} are there: lower "
                "fraction_fit or min_fit_clients of the strategy"
            )
        self.needed = num_clients
        taken = [proxy for proxy in eligible if self._roster.name(proxy) not in self._excluded]
        if len(taken) < at_least(self._min_results, num_clients):
            taken = eligible
        self.left_out = [self._roster.name(proxy) for proxy in eligible if proxy not in taken]
        size = min(len(taken), math.ceil(self._roster.over_select * num_clients - 1e-9))
        chosen = self._rng.choice(len(taken), size=size, replace=False)
        return [taken[i] for i in sorted(chosen)]
