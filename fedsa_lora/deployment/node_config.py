"""Facts of a node that no server decides, from its SuperNode's ``--node-config``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import ROLES
from fedsa_lora.store import client_fault
from fedsa_lora.suggest import listing, nearest

KEYS = (
    "client-id", "partition-id", "num-partitions", "data.path", "store", "paths", "forbid",
    "store-limit", "keep-messages", "evaluations", "share-tokens",
)  # fmt: skip
_SEPARATORS = re.compile(r"[,\s]+")  # of the words of forbid
_OF_A_PATTERN = re.compile(r"[.*?\[]")  # the names of tensors have dots


@dataclass(frozen=True)
class Node:
    """A client on its machine, which may have several.

    ``client`` is its name for good: ``client-id``, else ``partition-id``, never Flower's node id, which
    changes; ``client-id=NAME,NAME`` are several clients (``federation.clients_per_node``). ``data`` is a
    parquet, CSV, TSV or JSON Lines file, or a folder with one for each split; None for a part of
    the run's data set. ``store`` is the root of what it keeps between rounds, None in simulation. ``paths``
    are the folders that a run may name other data and models in. ``forbid`` are roles and patterns of tensor
    names that it does not let out. ``share_tokens`` (``share-tokens``): also tensors with values for each
    token may leave, by which a single answer reveals the words of its data.

    What runs may cost it: ``store_limit`` (``store-limit``) is how many GB the store may hold, all its runs
    together, before nothing more is answered; ``keep_messages`` (``keep-messages``): a run may have every
    reply kept (``run.keep_messages``); ``evaluations``: how many evaluate messages of one round are answered.
    """

    client: str
    data: Path | None = None
    store: Path | None = None
    paths: tuple[Path, ...] = ()
    forbid: tuple[str, ...] = ()
    share_tokens: bool = False
    store_limit: float = 20.0
    keep_messages: bool = False
    evaluations: int = 10

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Node:
        """From a node config, at each message: stock ``flower-supernode`` starts with any.

        Raises ConfigError with every fault that its words show, so that a word which was meant to keep
        something in is never passed over.
        """
        _refuse([*_faults(config), *_limit_faults(config)])
        return _node(config)

    @classmethod
    def deployed(cls, config: Mapping[str, Any]) -> Node:
        """As ``read``, of a node that is about to start: what it names must be there and of use as well.

        Raises ConfigError with every fault.
        """
        node, clients = _node(config), _named(config)
        each = [{**config, "client-id": one} for one in clients] or [dict(config)]
        words = list(dict.fromkeys(fault for one in each for fault in _faults(one)))
        if len(set(clients)) < len(clients):
            words.append(f"client-id: names a client twice: {','.join(clients)}")
        if len(clients) > 1 and node.data is not None:
            words.append(f"data.path: holds the data of one client, but this node is {len(clients)} clients")
        words += _limit_faults(config)
        _refuse([*words, *_store_faults(node.store), *_path_faults(node), *_data_faults(node.data)])
        return node


def of_clients(config: Mapping[str, Any], each: int) -> list[dict[str, Any]]:
    """The node config of each of a node's ``each`` clients, as a node would have that has this one alone.
    ``client-id`` names them; without it node p has the clients from ``p * each``.

    Raises ConfigError where the node has another number of clients.
    """
    names = _named(config)
    if not names:
        first = int(config.get("partition-id", 0)) * each
        names = [str(first + place) for place in range(each)]
    if len(names) != each:
        raise ConfigError(
            f"this node is {len(names)} clients, {','.join(names)}, but the run has {each} on each node: "
            f"expected federation.clients_per_node={len(names)}",
            sent="its node has a number of clients that differs from federation.clients_per_node",
            key="federation.clients_per_node",
        )
    return [{**config, "client-id": name} for name in names]


def _named(config: Mapping[str, Any]) -> list[str]:
    """The clients that a node config names."""
    return str(config["client-id"]).split(",") if "client-id" in config else []


def _refuse(faults: list[str]) -> None:
    if faults:
        text = "the node config cannot be used: " + "; ".join(faults)
        raise ConfigError(text, sent="its node config cannot be used")


def _node(config: Mapping[str, Any]) -> Node:
    data, store = config.get("data.path"), config.get("store")
    return Node(
        client=_client(config),
        data=None if data is None else _absolute(str(data)),
        store=None if store in (None, "") else _absolute(str(store)),
        paths=tuple(_absolute(path) for path in _folders(config) if path),
        forbid=_forbidden(config),
        store_limit=config.get("store-limit", Node.store_limit),
        keep_messages=config.get("keep-messages", Node.keep_messages),
        share_tokens=config.get("share-tokens", Node.share_tokens),
        evaluations=config.get("evaluations", Node.evaluations),
    )


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Faults that hold on any machine."""
    for key in config:
        if key not in KEYS:
            yield f"{key!r} is not one of {listing(KEYS)}{nearest(key, KEYS)}"
    if not {"client-id", "partition-id"} & set(config):
        yield "it names no client: start the node with client-id=NAME"
    elif len(clients := _named(config)) > 1:
        yield f"it names {len(clients)} clients: expected federation.clients_per_node={len(clients)} of a run"
    elif fault := client_fault(_client(config)):
        yield fault
    if not str(config.get("data.path", "-")).strip():
        yield "data.path: is empty; expected a file or a folder, or leave data.path out"
    if "forbid" in config and not _forbidden(config):
        yield (
            "forbid: is empty, so it would keep nothing local; expected roles and patterns of tensor "
            "names, or "
            "leave forbid out"
        )
    for folder in _folders(config):
        if not os.path.isabs(os.path.expanduser(folder)):
            yield f"paths: {folder!r} is not an absolute path; expected paths=FOLDER{os.pathsep}FOLDER"
    for word in _forbidden(config):
        if word not in ROLES and not _OF_A_PATTERN.search(word):
            yield (
                f"forbid: {word!r} would keep nothing local{nearest(word, ROLES)}; expected roles ("
                f"{listing(ROLES)}) and patterns of tensor names, such as *.layer.5.*"
            )


def _limit_faults(config: Mapping[str, Any]) -> Iterator[str]:
    limit, times = config.get("store-limit", Node.store_limit), config.get("evaluations", Node.evaluations)
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
        yield f"store-limit: {limit!r} is not a number of GB; expected for example store-limit=20"
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        yield f"evaluations: {times!r} is not a number of answers; expected for example evaluations=10"
    for key in ("keep-messages", "share-tokens"):
        if not isinstance(given := config.get(key, False), bool):
            yield f"{key}: {given!r} is neither true nor false"


def _store_faults(store: Path | None) -> Iterator[str]:
    if store is None:
        yield "no store: expected store=FOLDER, where this client keeps B and its head"
        return
    there = next(place for place in (store, *store.parents) if os.path.exists(place))
    if not there.is_dir():
        yield f"store: {there} is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"store: {there} cannot be written; give this user write permission"


def _path_faults(node: Node) -> Iterator[str]:
    for folder in node.paths:
        if not os.path.isdir(folder):
            yield f"paths: no folder at {folder}"


def _data_faults(data: Path | None) -> Iterator[str]:
    if data is None:
        return
    from fedsa_lora.tasks.formats import FORMATS  # takes seconds to import
    from fedsa_lora.tasks.sources import holds_data

    if not os.path.exists(data):
        yield f"data.path: there is nothing at {data}"
        return
    if not os.access(data, os.R_OK | os.X_OK if data.is_dir() else os.R_OK):
        yield f"data.path: {data} cannot be read; give this user read permission"
        return
    if not holds_data(data):
        yield (
            f"data.path: {data} has no file that can be read; expected {listing(FORMATS)}, or images in "
            "folders of their classes"
        )


def _client(config: Mapping[str, Any]) -> str:
    return str(config.get("client-id", config.get("partition-id", "")))


def _folders(config: Mapping[str, Any]) -> list[str]:
    given = str(config.get("paths", ""))
    return given.split(os.pathsep) if given else []


def _forbidden(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(word for word in _SEPARATORS.split(str(config.get("forbid", ""))) if word)


def _absolute(path: str) -> Path:
    return Path(os.path.expanduser(path)).resolve()
