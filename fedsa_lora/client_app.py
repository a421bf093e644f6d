"""Flower wiring of the client side. One process serves many clients with one resident model."""

from __future__ import annotations

from functools import lru_cache

from flwr.app import Context, Message
from flwr.client import Client
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedsa_lora import assemble
from fedsa_lora.client import FedSAClient
from fedsa_lora.client_record import ClientRecord
from fedsa_lora.config import load
from fedsa_lora.egress import Egress
from fedsa_lora.errors import ConfigError
from fedsa_lora.settings import RunConfig
from fedsa_lora.workbench import Workbench


@lru_cache(maxsize=1)
def _resident(overrides: str, run_id: int) -> tuple[RunConfig, Workbench]:
    config = load(overrides, default_dir=f"runs/{run_id}")
    assemble.refuse_passing(config)
    return config, assemble.workbench(config)


def client_id(context: Context) -> str:
    """``client-id`` of the node config, else ``partition-id``; never Flower's node id, which changes."""
    for key in ("client-id", "partition-id"):
        if key in context.node_config:
            return str(context.node_config[key])
    raise ConfigError("the node config names no client: start the node with client-id=NAME")


def _serve(context: Context) -> tuple[RunConfig, Workbench, str]:
    return *_resident(str(context.run_config["overrides"]), context.run_id), client_id(context)


def client_fn(context: Context) -> Client:
    config, bench, client = _serve(context)
    forbid = str(context.node_config.get("forbid", "")).split()
    return FedSAClient(client, bench, assemble.store(config, client), forbid).to_client()


def egress(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    config, _, client = _serve(context)
    return Egress(assemble.store(config, client), config.run.keep_messages)(message, context, call_next)


def written_down(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    config, _, client = _serve(context)
    return ClientRecord(assemble.store(config, client).folder)(message, context, call_next)


app = ClientApp(client_fn=client_fn, mods=[written_down, egress])
