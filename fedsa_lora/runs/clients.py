"""The clients that a run knows: those of its data, and those whose state is here."""

from __future__ import annotations

from fedsa_lora.errors import RunError, StoreError
from fedsa_lora.runs.reading import PARTITION, read_json
from fedsa_lora.settings import RunConfig
from fedsa_lora.store import client_fault


def stored(config: RunConfig) -> list[str]:
    """The clients whose state can be read from here."""
    root = config.store_dir
    return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []


def refuse_unknown(config: RunConfig, client: str) -> None:
    """Raise RunError for a client without a state here and without a share in the data that a run recorded,
    and StoreError for what is no name of a client."""
    if fault := client_fault(client):
        raise StoreError(fault)
    path = config.run_dir / PARTITION
    if client in stored(config) or not path.is_file():  # a run that ended early recorded no shares
        return
    if client not in read_json(path, ["clients"])["clients"]:
        raise unknown(config, client)


def unknown(config: RunConfig, client: str) -> RunError:
    """The error of a client that a run does not know, with those that it does."""
    return RunError(f"no client {client!r} in {config.run_dir}; there are {stored(config)}")
