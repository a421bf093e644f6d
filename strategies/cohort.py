"""Clients by name: Flower's node ids change from run to run, a client's own id does not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from flwr.common import GetPropertiesIns
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.criterion import Criterion

from fedsa_lora.errors import RunError
from fedsa_lora.seeds import generator


class Cohort:
    """Learns each node's client id once, and draws cohorts from names, seed and round alone.

    Raises RunError when fewer than ``expected`` nodes are there after ``wait_seconds``, when a
    node does not say who it is, or when two nodes are the same client.
    """

    def __init__(self, seed: int, expected: int, wait_seconds: int = 120) -> None:
        self.seed, self.expected, self.wait_seconds = seed, expected, wait_seconds
        self._names: dict[str, str] = {}

    def name(self, proxy: ClientProxy) -> str:
        """The client behind a node; the node's id while it is unknown."""
        return self._names.get(proxy.cid, proxy.cid)

    def at(self, round_: int, manager: ClientManager) -> ClientManager:
        """A view of the manager whose samples depend on (seed, round) and the names only."""
        return _RoundManager(manager, self.everyone(manager), self, round_)

    def everyone(self, manager: ClientManager) -> list[ClientProxy]:
        """All nodes that are there, ordered by client id."""
        manager.all()  # Flower looks for new nodes when it is asked for all, otherwise every five seconds
        if not manager.wait_for(self.expected, timeout=self.wait_seconds):
            raise RunError(
                f"{manager.num_available()} of {self.expected} clients are connected after "
                f"{self.wait_seconds} s: start the missing nodes, or lower federation.clients"
            )
        proxies = list(manager.all().values())
        self._learn([proxy for proxy in proxies if proxy.cid not in self._names])
        names = [self.name(proxy) for proxy in proxies]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RunError(f"two nodes have the same client id {twice}: give each its own client-id")
        return sorted(proxies, key=self.name)

    def _learn(self, unknown: list[ClientProxy]) -> None:
        if unknown:
            with ThreadPoolExecutor() as pool:
                names = pool.map(_ask_name, unknown)
                self._names |= {proxy.cid: name for proxy, name in zip(unknown, names, strict=True)}


def _ask_name(proxy: ClientProxy) -> str:
    try:
        answer = proxy.get_properties(GetPropertiesIns({}), None, None)
    except ValueError as error:  # Flower's word for a reply that is an error
        raise RunError(f"node {proxy.cid} failed before the first round: {error}") from None
    name = answer.properties.get("client")
    if not isinstance(name, str):
        raise RunError(f"node {proxy.cid} does not say which client it is: {answer.status.message}")
    return name


class _RoundManager(ClientManager):
    """What an inner strategy sees of the clients in one round."""

    def __init__(
        self, manager: ClientManager, ordered: list[ClientProxy], cohort: Cohort, round_: int
    ) -> None:
        self._manager, self._ordered = manager, ordered
        self._rng = generator(cohort.seed, "sample", round_)

    def num_available(self) -> int:
        return len(self._ordered)

    def register(self, client: ClientProxy) -> bool:
        return self._manager.register(client)

    def unregister(self, client: ClientProxy) -> None:
        self._manager.unregister(client)

    def all(self) -> dict[str, ClientProxy]:
        return {proxy.cid: proxy for proxy in self._ordered}

    def wait_for(self, num_clients: int, timeout: int = 0) -> bool:
        return len(self._ordered) >= num_clients

    def sample(
        self, num_clients: int, min_num_clients: int | None = None, criterion: Criterion | None = None
    ) -> list[ClientProxy]:
        eligible = [proxy for proxy in self._ordered if criterion is None or criterion.select(proxy)]
        if num_clients > len(eligible):
            raise RunError(
                f"the strategy asks for {num_clients} clients, {len(eligible)} are there: lower "
                "fraction_fit or min_fit_clients of the strategy"
            )
        chosen = self._rng.choice(len(eligible), size=num_clients, replace=False)
        return [eligible[i] for i in sorted(chosen)]
