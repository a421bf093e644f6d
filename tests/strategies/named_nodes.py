"""Nodes that answer which client they are, or do not, and the grid by which they are asked."""

import itertools
from typing import Any, ClassVar

from flwr.app import Error, Message
from flwr.common import Code, GetPropertiesRes, Status
from flwr.common.constant import ErrorCode
from flwr.compat.common import recorddict_compat as compat
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.client_proxy import ClientProxy

SILENT = None  # the answer of a node that gives none
RAISED = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ConfigError: no store")


class Named(ClientProxy):
    """A node with these properties, or an Error, or SILENT; it counts how often it was asked. ``key`` is its
    public key as the SuperLink knows it."""

    numbers: ClassVar = itertools.count(10**9)

    def __init__(self, cid: str, answer: Any, key: bytes = b"") -> None:
        super().__init__(cid)
        self.node_id = int(cid) if cid.isdecimal() else next(self.numbers)
        self.answer, self.key, self.asked = answer, key, 0
        self.grid = Grid(self)

    def get_parameters(self, ins, timeout, group_id):
        raise AssertionError("only its name is asked for, by a message")

    get_properties = fit = evaluate = reconnect = get_parameters


class Grid:
    """What one node sees of the grid of all."""

    nodes: ClassVar[dict[int, Named]] = {}
    open: ClassVar[dict[str, tuple[Named, Message]]] = {}
    numbers: ClassVar = itertools.count(1)

    def __init__(self, node: Named) -> None:
        self.nodes[node.node_id] = node

    def get_nodes(self):
        return [NodeInfo(node_id=number, public_key=node.key) for number, node in self.nodes.items()]

    def push_messages(self, messages):
        (message,) = messages
        node = self.nodes[message.metadata.dst_node_id]
        node.asked += 1
        message.metadata.__dict__["_message_id"] = f"query {next(self.numbers)}"
        self.open[message.metadata.message_id] = node, message
        return [message.metadata.message_id]

    def pull_messages(self, message_ids):
        there = [key for key in message_ids if key in self.open and self.open[key][0].answer is not SILENT]
        return [self._reply(*self.open.pop(key)) for key in there]

    def _reply(self, node: Named, message: Message) -> Message:
        if isinstance(node.answer, Error):
            return Message(node.answer, reply_to=message)
        answer = GetPropertiesRes(Status(Code.OK, "no such client here"), node.answer)
        return Message(compat.getpropertiesres_to_recorddict(answer), reply_to=message)
