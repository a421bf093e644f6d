"""Finds out which client is behind each node: by what the node says, and by the key that it has at Flower."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from flwr.app import Message
from flwr.common import GetPropertiesIns, MessageTypeLegacy
from flwr.compat.common import recorddict_compat as compat
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy

from fedsa_lora.errors import ConfigError
from fedsa_lora.store import client_fault
from strategies.round.admission import Remark
from strategies.round.reasons import plain_reason
from strategies.round.replies import Replies, UnreadableReply

Registry = Callable[[], Mapping[bytes, str]]  # reads the clients by their nodes' public keys, in PEM
QUERY_SECONDS = 600.0  # a node's first answer waits for its app to be installed and torch to be imported
log = logging.getLogger("flwr")


@dataclass(frozen=True)
class Present:
    """The nodes that are there: ``clients`` by client id; by node id those that are ``refused``, those that
    ``failed`` when they were asked which client they are, and those that have not answered yet (``pending``);
    and the names that nodes share of which none was first (``twice``)."""

    clients: dict[str, ClientProxy]
    refused: dict[str, Remark]
    failed: dict[str, Remark]
    pending: dict[str, Remark]
    twice: list[str]

    @property
    def nodes(self) -> int:
        return len(self.clients) + len(self.refused) + len(self.failed) + len(self.pending)


class Naming:
    """Asks each node once which client it is, and decides in every phase of every round whose names hold.

    With a ``registry`` a client is the node that has its key, as the SuperLink knows it: a node with another
    key, or that says another name than its key's, is refused. Without one a name is a claim: of the nodes
    that say the same, the one that said it first is the client for as long as it is there, and where none was
    first, none is.

    An answer is taken in whenever it comes. A query is valid for ``seconds`` (None: Flower's own limit). A
    node whose answer was an error, whose query has expired, or which was refused for its name, is asked again
    in the next phase.
    """

    def __init__(self, registry: Registry | None = None, seconds: float | None = None) -> None:
        self.registry, self.seconds = registry, seconds
        self._phase = 0
        self._owners: Mapping[bytes, str] = {}  # client by public key
        self._said: dict[str, str] = {}  # name by node id
        self._since: dict[str, int] = {}  # the phase in which a node said it
        self._faults: dict[str, str] = {}  # of a node's last answer
        self._asked: dict[str, int] = {}  # the phase in which a node was asked last
        self._first_asked: dict[str, float] = {}
        self._open: dict[str, GridClientProxy] = {}  # by the id of the query that is not answered yet
        self._replies = Replies()
        self._misnamed: set[str] = set()  # the nodes whose names did not hold when they were last looked at

    def begin(self) -> None:
        """Begin a phase of a round: read the registry again. Raises ConfigError for a first one with faults;
        later the one that was read before stays in force."""
        self._phase += 1
        if self.registry is None:
            return
        try:
            self._owners = self.registry()
        except ConfigError as error:
            if self._phase == 1:
                raise
            log.warning("the registry as it was read before remains in use: %s", error)

    def look(self, proxies: Mapping[str, ClientProxy]) -> Present:
        """Decide who is who among the nodes that are there, by node id."""
        owners = self._owners_of(proxies)
        if self.registry is not None:  # without those that have left meanwhile
            proxies = {cid: proxy for cid, proxy in proxies.items() if cid in owners}
        refused = {
            cid: Remark(None, "rejected", f"node {cid} has a key that is not in the registry")
            for cid, owner in owners.items()
            if owner is None
        }
        self._ask({cid: proxy for cid, proxy in proxies.items() if cid not in refused})
        self._collect()
        said = {cid: self._said[cid] for cid in proxies if cid in self._said and cid not in refused}
        bound = self.registry is not None
        misnamed = _of_another_key(said, owners) if bound else self._second(said)
        self._misnamed = set(misnamed)
        refused |= misnamed
        unnamed = proxies.keys() - said.keys() - refused.keys()
        waited_for = {proxy.cid for proxy in self._open.values()}
        clients = {name: proxies[cid] for cid, name in said.items() if cid not in refused}
        shared = set() if bound else {said[cid] for cid in misnamed}
        return Present(
            clients,
            refused,
            {cid: self._fault(cid, owners.get(cid)) for cid in sorted(unnamed - waited_for)},
            {cid: self._silent(cid, owners.get(cid)) for cid in sorted(unnamed & waited_for)},
            sorted(shared - clients.keys()),
        )

    def waited(self, cid: str) -> float:
        """Seconds since a node was asked for the first time."""
        return time.monotonic() - self._first_asked[cid]

    def _owners_of(self, proxies: Mapping[str, ClientProxy]) -> dict[str, str | None]:
        """By node id the client that a node's key belongs to, None for a key that is not in the registry;
        empty without a registry. One request to the SuperLink for all nodes."""
        if self.registry is None or not proxies:
            return {}
        grid = cast(GridClientProxy, next(iter(proxies.values()))).grid
        keys = {str(node.node_id): node.public_key for node in grid.get_nodes()}
        return {cid: self._owners.get(keys[cid]) for cid in proxies if cid in keys}

    def _ask(self, proxies: Mapping[str, ClientProxy]) -> None:
        """Send a query to each node that has none open, has said no name that holds, and was not asked in
        this phase."""
        waited_for = {proxy.cid for proxy in self._open.values()}
        for cid, proxy in proxies.items():
            is_known = cid in self._said and cid not in self._misnamed
            if is_known or cid in waited_for or self._asked.get(cid) == self._phase:
                continue
            node = cast(GridClientProxy, proxy)
            message = Message(
                content=compat.getpropertiesins_to_recorddict(GetPropertiesIns({})),
                message_type=MessageTypeLegacy.GET_PROPERTIES,
                dst_node_id=node.node_id,
                ttl=self.seconds,
            )
            self._asked[cid] = self._phase
            self._first_asked.setdefault(cid, time.monotonic())
            ids = list(node.grid.push_messages([message]))
            if ids and ids[0]:
                self._open[ids[0]] = node
            else:  # Flower's word for a node that it does not know any more
                self._faults[cid] = "cannot be reached"

    def _collect(self) -> None:
        """Take in the answers that are there."""
        for message_id, node in list(self._open.items()):
            try:
                replies = self._replies.take(node.grid, message_id)
            except UnreadableReply as error:
                del self._open[message_id]
                self._faults[node.cid] = f"does not report its client id: {error}"
                continue
            if replies:
                del self._open[message_id]
                self._read(node.cid, replies[0])

    def _read(self, cid: str, reply: Message) -> None:
        if reply.has_error():
            told = plain_reason(reply.error.reason or f"error {reply.error.code}")
            self._faults[cid] = f"failed before it reported its client id: {told}"
            return
        try:
            answer = compat.recorddict_to_getpropertiesres(reply.content)
        except Exception as error:  # what a foreign app may answer fails in many ways
            self._faults[cid] = f"does not report its client id: {type(error).__name__}: {error}"
            return
        name = answer.properties.get("client")
        if not isinstance(name, str):
            self._faults[cid] = f"does not report its client id: {answer.status.message}"
        elif fault := client_fault(name):
            self._faults[cid] = f"reports an unusable client id: {fault}"
        elif self._said.get(cid) != name:
            self._said[cid], self._since[cid] = name, self._phase

    def _second(self, said: Mapping[str, str]) -> dict[str, Remark]:
        """The nodes that say a name which another node said before, or at the same time."""
        sharing = defaultdict[str, list[str]](list)
        for cid, name in said.items():
            sharing[name].append(cid)
        refused = {}
        for name, nodes in sharing.items():
            first = min(self._since[cid] for cid in nodes)
            holders = [cid for cid in nodes if self._since[cid] == first]
            for cid in nodes:
                others = ", ".join(other for other in nodes if other != cid)
                if len(nodes) > 1 and holders != [cid]:
                    told = f"node {cid} claims to be {name}, as node {others} does: its claim is ignored"
                    refused[cid] = Remark(None, "rejected", told)
        return refused

    def _fault(self, cid: str, owner: str | None) -> Remark:
        return Remark.of(owner, "lost", f"node {cid} {self._faults.get(cid, 'was not asked')}")

    def _silent(self, cid: str, owner: str | None) -> Remark:
        return Remark(owner, "lost", f"node {cid} has not reported its client id: it does not answer")


def _of_another_key(said: Mapping[str, str], owners: Mapping[str, str | None]) -> dict[str, Remark]:
    """The nodes that say another name than that of their key."""
    refused = {}
    for cid, name in said.items():
        if name != owners[cid]:
            told = f"node {cid} claims to be {name}, but has the key of {owners[cid]}"
            refused[cid] = Remark(owners[cid], "rejected", told)
    return refused
