"""Flower wiring of the client side. One process serves many clients with one resident model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from flwr.app import Context, Error, Message, UserConfig
from flwr.app.message import make_message
from flwr.client import Client
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedsa_lora.bundle import Part, pack, size_of, unpack
from fedsa_lora.client import build
from fedsa_lora.client.egress import Egress, discreet
from fedsa_lora.client.record import ClientRecord, header_of
from fedsa_lora.client.workbench import Workbench
from fedsa_lora.config.compose import as_handed
from fedsa_lora.deployment.node_config import Node, of_clients
from fedsa_lora.deployment.node_store import check_room, node_store, unreadable_by_others
from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.exchange.wire import BroadcastHeader
from fedsa_lora.files import writing
from fedsa_lora.learning.together import at_the_same_time
from fedsa_lora.runs.reading import holds_run
from fedsa_lora.settings import RunConfig
from fedsa_lora.simulation import composed, refuse_unsimulated, simulated
from fedsa_lora.store import DirectoryStore
from fedsa_lora.telemetry.journal import CLIENT_LOG, about


@lru_cache(maxsize=1)
def _resident(
    overrides: str, resolved: str, run_id: int, data: Path | None, folders: tuple[Path, ...] | None
) -> tuple[RunConfig, Workbench]:
    config = as_handed(overrides, resolved, f"runs/{run_id}", folders)
    refuse_unsimulated(config)
    return config, build.workbench(config, data)


def make_resident(run_config: UserConfig) -> None:
    """Make the resident model of a simulation before the first client is served: processes that are forked
    afterwards have it in common memory. Raises ConfigError, DataError or ModelError."""
    _resident(str(run_config["overrides"]), composed(run_config), 1, None, None)


def _serve(context: Context) -> tuple[Node, RunConfig, Workbench, DirectoryStore]:
    """Outside of simulation the node config alone names places: a run config is a stranger's."""
    node = Node.read(context.node_config)
    local = simulated()
    if node.store is None and not local:
        raise ConfigError(
            "this node has no store for the local state of its client: start it with store=FOLDER",
            sent="its node config sets no store",
        )
    overrides, folders = str(context.run_config["overrides"]), None if local else node.paths
    resolved = composed(context.run_config)
    config, bench = _resident(overrides, resolved, context.run_id, node.data, folders)
    if node.store is None:
        return node, config, bench, build.store(config, node.client)
    return node, config, bench, node_store(config, node, node.store)


def _make_folder(store: DirectoryStore, run_dir: Path, run: str) -> None:
    """The folder of a simulated client. One inside of a run directory is not made where that is gone, or
    another ``run`` is in its place: a run that was deleted must not come back with half of its files. Raises
    RunError where there can be no folder."""
    root = store.folder.parent
    inside = root.is_relative_to(run_dir)
    if inside and not holds_run(run_dir, run):
        raise RunError(
            f"{run_dir} no longer exists: it was deleted, moved or replaced while its run was in progress",
            sent="the run directory was deleted, moved or replaced while its run was in progress",
        )
    with writing(root):
        root.mkdir(parents=not inside, exist_ok=True)
    store.make()


def client_fn(context: Context) -> Client:
    node, _, bench, store = _serve(context)
    return build.client(node, bench, store).to_client()


def each(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answers a message to several clients of this node, as if each were asked alone."""
    size = size_of(message.content) if message.has_content() else None
    if size is None:
        return call_next(message, context)
    configs = of_clients(context.node_config, size)
    calls: dict[int, Callable[[], Message]] = {}
    for place, asked in unpack(message.content, size).items():
        if isinstance(asked, Error):
            continue  # a server asks for nothing by it
        own = replace(context, node_config=configs[place])
        calls[place] = partial(discreet, make_message(message.metadata, asked), own, call_next)
    replies = _called([*calls.values()])
    answers: dict[int, Part] = {
        place: reply.error if reply.has_error() else reply.content
        for place, reply in zip(calls, replies, strict=True)
    }
    return Message(pack(answers, size), reply_to=message)


def _called(calls: list[Callable[[], Message]]) -> list[Message]:
    """The answers of clients: in a simulation at the same time. What those of a node write is kept from other
    users by a setting of the process, for one client at a time."""
    if simulated():
        return at_the_same_time(calls)
    return [call() for call in calls]


def kept(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Searches what is answered for what is the client's own, and records it in the client's folder. What a
    node writes down is its user's alone, and nothing where its store is full."""
    node, config, bench, store = _serve(context)
    egress = Egress(store, bench.private, config.run.keep_messages)
    searched = partial(egress, call_next=call_next)
    asked = header_of(message, BroadcastHeader)
    answer = partial(ClientRecord(store.folder, asked), message, context, searched)
    if node.store is None:
        _make_folder(store, config.run_dir, "" if asked is None else asked.run)
        with about(log=store.folder / CLIENT_LOG):  # of a simulation, whose server is on the same machine
            return answer()
    check_room(node.store, node.store_limit)
    with unreadable_by_others():
        store.make()
        return answer()


app = ClientApp(client_fn=client_fn, mods=[discreet, each, kept])
