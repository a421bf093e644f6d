"""Flower wiring of the client side. One process serves many clients with one resident model."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.client import Client
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedsa_lora import assemble
from fedsa_lora.client import FedSAClient
from fedsa_lora.client_record import ClientRecord
from fedsa_lora.config import load
from fedsa_lora.egress import Egress, discreet
from fedsa_lora.errors import ConfigError
from fedsa_lora.settings import RunConfig
from fedsa_lora.workbench import Workbench


@lru_cache(maxsize=1)
def _resident(overrides: str, run_id: int, folders: tuple[Path, ...] | None) -> tuple[RunConfig, Workbench]:
    config = load(overrides, f"runs/{run_id}", folders)
    assemble.refuse_passing(config)
    return config, assemble.workbench(config)


def client_id(context: Context) -> str:
    """``client-id`` of the node config, else ``partition-id``; never Flower's node id, which changes."""
    for key in ("client-id", "partition-id"):
        if key in context.node_config:
            return str(context.node_config[key])
    raise ConfigError("the node config names no client: start the node with client-id=NAME")


def _serve(context: Context) -> tuple[RunConfig, Workbench, str]:
    folders = assemble.readable(context.node_config)
    return *_resident(str(context.run_config["overrides"]), context.run_id, folders), client_id(context)


def client_fn(context: Context) -> Client:
    config, bench, client = _serve(context)
    forbid = str(context.node_config.get("forbid", "")).split()
    store = assemble.store(config, client, context.node_config)
    return FedSAClient(client, bench, store, forbid).to_client()


def egress(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    config, _, client = _serve(context)
    store = assemble.store(config, client, context.node_config)
    return Egress(store, config.run.keep_messages)(message, context, call_next)


def written_down(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    config, _, client = _serve(context)
    store = assemble.store(config, client, context.node_config)
    return ClientRecord(store.folder)(message, context, call_next)


app = ClientApp(client_fn=client_fn, mods=[discreet, written_down, egress])
