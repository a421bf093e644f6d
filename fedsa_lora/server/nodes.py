"""Nodes with several clients each: strategies, checks and records know clients only."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.server import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.serverapp.grid import Grid
from flwr.supercore.run import Run

from fedsa_lora.bundle import Part, pack, unpack
from strategies.round.collection import UNREACHABLE
from strategies.round.replies import OF_ALL, Replies, UnreadableReply

Parts = dict[int, Message]  # the messages to clients of one node, by place on the node
SILENT = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "its node did not answer for it")


class ClientGrid(Grid):
    """A Grid in which each client is a separate node, over one whose nodes have ``each`` clients.

    Client ``place`` of node n is node ``n * each + place`` here. What is pushed to clients of one node waits
    until an answer is asked for, and then travels as one message; so do the answers.
    """

    def __init__(self, grid: Grid, each: int) -> None:
        self._grid, self._each = grid, each
        self._replies = Replies()
        self._ids = itertools.count(1)
        self._unsent: dict[tuple[int, str], Parts] = {}  # by node and type of message
        self._sent: dict[str, Parts] = {}  # by the id of the message that they travelled in
        self._carrier: dict[str, str] = {}  # the id of that message by the id of a part
        self._answers: dict[str, Message | UnreadableReply] = {}  # by the id of a part

    @property
    def run(self) -> Run:
        return self._grid.run

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        return [
            node * self._each + place for node in self._grid.get_node_ids() for place in range(self._each)
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages until an answer is asked for. Returns ids that are of this Grid alone."""
        ids = []
        for message in messages:
            node, place = divmod(message.metadata.dst_node_id, self._each)
            key = (node, message.metadata.message_type)
            if place in self._unsent.get(key, {}):
                self._send(key)
            ids.append(f"part-{next(self._ids)}")
            message.metadata.__dict__["_message_id"] = ids[-1]  # as Flower's own grids do
            self._unsent.setdefault(key, {})[place] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers that are there. Raises UnreadableReply for one that cannot be read."""
        for key in list(self._unsent):
            self._send(key)
        found = []
        for part_id in message_ids:
            if part_id not in self._answers and part_id in self._carrier:
                self._look_for(self._carrier[part_id])
            answer = self._answers.pop(part_id, None)
            if isinstance(answer, UnreadableReply):
                raise answer
            if answer is not None:
                found.append(answer)
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> NoReturn:
        raise NotImplementedError("push the messages, and pull their answers")

    def _send(self, key: tuple[int, str]) -> None:
        """Push the messages to the clients of a node as one."""
        (node, kind), parts = key, self._unsent.pop(key)
        first = next(iter(parts.values())).metadata
        message = Message(
            content=pack({place: part.content for place, part in parts.items()}, self._each),
            message_type=kind,
            dst_node_id=node,
            group_id=first.group_id,
            ttl=first.ttl,
        )
        ids = list(self._grid.push_messages([message]))
        if not (ids and ids[0]):  # Flower's word for a node that it does not know any more
            self._keep(parts, dict.fromkeys(parts, UNREACHABLE))
            return
        self._sent[ids[0]] = parts
        for part in parts.values():
            self._carrier[part.metadata.message_id] = ids[0]

    def _look_for(self, message_id: str) -> None:
        """Take apart the answer to the message that parts travelled in, if it is there."""
        answers: Mapping[int, Part] | UnreadableReply
        try:
            replies = self._replies.take(self._grid, message_id)
            if not replies:
                return
            if replies[0].has_error():
                answers = dict.fromkeys(self._sent[message_id], replies[0].error)
            else:
                answers = unpack(replies[0].content, self._each)
        except OF_ALL:
            raise
        except UnreadableReply as error:
            answers = error
        except Exception as error:  # what a foreign app may answer fails in many ways
            answers = UnreadableReply(f"{type(error).__name__}: {error}")
        parts = self._sent.pop(message_id)
        for part in parts.values():
            del self._carrier[part.metadata.message_id]
        self._keep(parts, answers)

    def _keep(self, parts: Parts, answers: Mapping[int, Part] | UnreadableReply) -> None:
        """Keep the answer of each client that was asked, until it is pulled."""
        for place, message in parts.items():
            answer: Message | UnreadableReply
            if isinstance(answers, UnreadableReply):
                answer = answers
            else:
                answer = Message(answers.get(place, SILENT), reply_to=message)
            self._answers[message.metadata.message_id] = answer


class ClientsOfNodes(SimpleClientManager):
    """Registers ``each`` clients for each node that Flower registers."""

    def __init__(self, each: int) -> None:
        super().__init__()
        self._each = each
        self._grid: ClientGrid | None = None

    def register(self, client: ClientProxy) -> bool:
        added = [super(ClientsOfNodes, self).register(one) for one in self._clients(client)]
        return all(added)

    def unregister(self, client: ClientProxy) -> None:
        for one in self._clients(client):
            super().unregister(one)

    def _clients(self, node: ClientProxy) -> list[GridClientProxy]:
        assert isinstance(node, GridClientProxy)
        if self._grid is None:
            self._grid = ClientGrid(node.grid, self._each)
        clients = []
        for place in range(self._each):
            client = GridClientProxy(node.node_id * self._each + place, self._grid, node.run_id)
            client.cid = f"{node.cid}/{place}"  # as messages name it
            clients.append(client)
        return clients
