"""Clients by name: Flower's node ids change from run to run, a client's own id does not."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from flwr.common import GetPropertiesIns
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.criterion import Criterion

from fedsa_lora.errors import RunError
from fedsa_lora.seeds import generator
from strategies.admission import Remark
from strategies.reasons import causes, plain_reason

log = logging.getLogger("flwr")


@dataclass(frozen=True)
class Silent:
    """A node, by its id at Flower, that does not tell which client it is, and why."""

    client: str
    reason: str

    def __str__(self) -> str:
        return f"node {self.client} {self.reason}"


class Cohort:
    """Learns each node's client id once, and draws cohorts from names, seed and round alone.

    At the start it waits ``wait_seconds`` for the ``expected`` clients, and goes on with fewer down to the
    share ``least`` of them; later it waits, as long, only where fewer than that are there. A node that does
    not say who it is, within ``answer_seconds`` (None: however long it takes), is left out.
    ``over_select``: how many times the clients that a round needs are sampled.

    Raises RunError when too few are there at the start, or when two nodes are the same client.
    """

    def __init__(
        self,
        seed: int,
        expected: int,
        wait_seconds: int = 120,
        *,
        least: float = 1.0,
        answer_seconds: float | None = None,
        over_select: float = 1.0,
    ) -> None:
        self.seed, self.expected, self.wait_seconds = seed, expected, wait_seconds
        self.answer_seconds, self.over_select = answer_seconds, over_select
        self.least = at_least(least, expected)
        self._names: dict[str, str] = {}
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
        """All nodes that are there and say who they are, ordered by client id."""
        manager.all()  # Flower looks for new nodes when it is asked for all, otherwise every five seconds
        begins = self._present is None
        manager.wait_for(self.expected if begins else self.least, timeout=self.wait_seconds)
        proxies = manager.all()
        silent = self._learn([proxy for cid, proxy in proxies.items() if cid not in self._names])
        known = {name: proxies[cid] for cid, name in self._names.items() if cid in proxies}
        names = [self._names[cid] for cid in proxies if cid in self._names]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            if begins:
                raise RunError(f"two nodes have the same client id {twice}: give each its own client-id")
            log.warning("two nodes are client %s: the one that came last is taken", ", ".join(twice))
        if begins and len(known) < self.least:
            reason = (
                f"{len(known)} of {self.expected} clients are connected after {self.wait_seconds} s: start "
                "the missing nodes, or lower federation.clients or federation.min_clients"
            )
            if silent:
                reason = (
                    f"{len(known)} of {self.expected} clients say which they are, {len(silent)} nodes do not"
                )
            raise RunError("\n".join([reason, *causes(silent)]))
        for node in silent:
            log.warning("%s", node)
        if len(known) != self._present and (len(known) < self.expected or not begins):
            log.warning("%d of %d clients are there", len(known), self.expected)
        self._present = len(known)
        return [known[name] for name in sorted(known)]

    def _learn(self, unknown: list[ClientProxy]) -> list[Silent]:
        """Ask nodes for their names. Returns those that do not tell it."""
        if not unknown:
            return []
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(partial(_ask_name, seconds=self.answer_seconds), unknown))
        pairs = list(zip(unknown, found, strict=True))
        self._names |= {proxy.cid: name for proxy, (name, _) in pairs if name is not None}
        return [Silent(proxy.cid, fault) for proxy, (name, fault) in pairs if name is None]


def at_least(share: float, of: int) -> int:
    """The smallest whole number, from 1, that is this share of another."""
    return max(1, math.ceil(share * of - 1e-9))  # 1.1 times 10 is a little more than 11


def _ask_name(proxy: ClientProxy, seconds: float | None) -> tuple[str | None, str]:
    """A node's client, or None and what is wrong with it."""
    try:
        answer = proxy.get_properties(GetPropertiesIns({}), seconds, None)
    except ValueError as error:  # Flower's word for a reply that is an error
        told = Remark.of(None, "error", plain_reason(str(error)))
        return None, f"failed before it said which client it is: {told}"
    name = answer.properties.get("client")
    if not isinstance(name, str):
        return None, f"does not say which client it is: {answer.status.message}"
    return name, ""


class RoundManager(ClientManager):
    """What an inner strategy sees of the clients in one round: as many as there should be, of whom those
    are sampled that are there. ``needed`` is how many it asked for, ``left_out`` who was excluded."""

    def __init__(
        self,
        manager: ClientManager,
        ordered: list[ClientProxy],
        cohort: Cohort,
        round_: int,
        excluded: Collection[str],
        min_results: float,
    ) -> None:
        self.ordered, self.needed, self.left_out = ordered, 0, list[str]()
        self._manager, self._cohort = manager, cohort
        self._excluded, self._min_results = excluded, min_results
        self._rng = generator(cohort.seed, "sample", round_)

    def num_available(self) -> int:
        return max(len(self.ordered), self._cohort.expected)

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
        taken = [proxy for proxy in eligible if self._cohort.name(proxy) not in self._excluded]
        if len(taken) < at_least(self._min_results, num_clients):
            taken = eligible
        self.left_out = [self._cohort.name(proxy) for proxy in eligible if proxy not in taken]
        size = min(len(taken), math.ceil(self._cohort.over_select * num_clients - 1e-9))
        chosen = self._rng.choice(len(taken), size=size, replace=False)
        return [taken[i] for i in sorted(chosen)]
