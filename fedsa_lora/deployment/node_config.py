"""What a node says of itself, in its SuperNode's ``--node-config``: facts that no server decides."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsa_lora.errors import ConfigError
from fedsa_lora.suggest import listing, nearest

KEYS = ("client-id", "partition-id", "num-partitions", "data.path", "store", "paths", "forbid")


@dataclass(frozen=True)
class Node:
    """One client's machine.

    ``client`` is its name for good: ``client-id``, else ``partition-id``, never Flower's node id, which
    changes. ``data`` is a parquet, CSV, TSV or JSON Lines file of its own, or a folder with one for each
    split; None for a part of the run's data set. ``store`` is the root of what it keeps between rounds, None
    in simulation. ``paths`` are the folders that a run may name other data and models in. ``forbid`` are
    roles and patterns of tensor names that it does not let out.
    """

    client: str
    data: Path | None = None
    store: Path | None = None
    paths: tuple[Path, ...] = ()
    forbid: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Node:
        """From a node config. Raises ConfigError when it names no client."""
        client = config.get("client-id", config.get("partition-id"))
        if client is None:
            raise ConfigError("the node config names no client: start the node with client-id=NAME")
        data, store = config.get("data.path"), config.get("store")
        paths = str(config.get("paths", "")).split(os.pathsep)
        return cls(
            client=str(client),
            data=None if data is None else _absolute(str(data)),
            store=None if store is None else _absolute(str(store)),
            paths=tuple(_absolute(path) for path in paths if path),
            forbid=tuple(str(config.get("forbid", "")).split()),
        )

    @classmethod
    def deployed(cls, config: Mapping[str, Any]) -> Node:
        """As ``read``, of a node that is about to start: nothing may be missing, misspelt or unusable.

        Raises ConfigError with every fault.
        """
        faults = [
            f"{key!r} is none of {listing(KEYS)}{nearest(key, KEYS)}" for key in config if key not in KEYS
        ]
        node = cls.read(config)
        if node.store is None:
            faults.append("no store: expected store=FOLDER, where this client keeps B and its head")
        if node.data is not None and not node.data.exists():
            faults.append(f"data.path: nothing at {node.data}")
        if faults:
            raise ConfigError("the node config cannot be used: " + "; ".join(faults))
        return node


def _absolute(path: str) -> Path:
    return Path(path).expanduser().resolve()
