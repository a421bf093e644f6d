"""Checks of this machine for its role in a deployment: SuperLink or SuperNode."""

from __future__ import annotations

import errno
import shutil
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from flwr.supercore.address import parse_address

from fedsa_lora.doctor.certificates import certificate_checks, root_among
from fedsa_lora.doctor.machine import GIGABYTE, Check
from fedsa_lora.doctor.superlink import superlink_checks, version_at
from fedsa_lora.errors import FedSAError

STORE_GIGABYTES = 0.5


@dataclass(frozen=True)
class Deployment:
    """Places to check; those that are None are not. ``superlink``: HOST:PORT to reach, ``port``: one of this
    machine to listen at, ``certificates``: the root, the server's or both, ``key``: the server's, ``data``: a
    client's file or folder, ``store``: the folder for its state."""

    superlink: str | None = None
    port: int | None = None
    certificates: Sequence[Path] = ()
    key: Path | None = None
    data: Path | None = None
    store: Path | None = None


def examine_deployment(asked: Deployment) -> list[Check]:
    """The checks that were asked for, in the order in which a user would fix them."""
    parsed = parse_address(asked.superlink) if asked.superlink else None
    checks = certificate_checks(asked.certificates, asked.key, parsed[0] if parsed else None)
    if asked.port is not None:
        checks.append(_port(asked.port))
    if asked.superlink is not None:
        checks += superlink_checks(asked.superlink, root_among(asked.certificates))
    if asked.data is not None:
        checks.append(_data(asked.data))
    if asked.store is not None:
        checks.append(_store(asked.store))
    return checks


def _port(port: int) -> Check:
    name = f"port {port}"
    try:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return Check(name, False, f"{error.strerror}", "choose a port from 1024 on")
        answers = version_at(f"127.0.0.1:{port}", None)
        what = answers.found if isinstance(answers, Check) else f"a SuperLink of Flower {answers} answers"
        return Check(name, False, f"taken by {_listener(port)}: {what}", "end it, or choose another port")
    except OverflowError:
        return Check(name, False, "is not a port", "choose one from 1024 to 65535")
    return Check(name, True, "free")


def _listener(port: int) -> str:
    """Names the process that listens to a port of this machine, as far as the system shows."""
    try:
        open_ports = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        process = next(psutil.Process(c.pid) for c in open_ports if c.laddr.port == port and c.pid)
        command = " ".join(Path(word).name for word in process.cmdline()[:2])
        return f"{command} (process {process.pid})"
    except (psutil.Error, StopIteration):
        return "a process of another user"


def _data(path: Path) -> Check:
    from fedsa_lora.tasks.sources import read_split

    kinds = "parquet, CSV, TSV, JSON Lines or npz, or images in folders of their classes"
    remedy = f"correct the path, or fix the file: {kinds}"
    if not path.exists():
        return Check("data", False, f"nothing at {path.absolute()}", remedy)
    try:
        rows = read_split(str(path), "train")
    except FedSAError as error:
        return Check("data", False, str(error), remedy)
    except OSError as error:
        return Check("data", False, f"{path}: {error.strerror}", "give this user read permission")
    found = "; ".join([f"{len(rows):,} rows of {', '.join(rows.column_names)}", *rows.notes])
    return Check("data", len(rows) > 0, found, "" if len(rows) else "add rows to it")


def _store(path: Path) -> Check:
    folder = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"written")
    except OSError as error:
        return Check(
            "store", False, f"{folder}: {error.strerror}", "give a folder that this user can write to"
        )
    free = shutil.disk_usage(folder).free / GIGABYTE
    enough = free >= STORE_GIGABYTES
    remedy = "" if enough else f"free at least {STORE_GIGABYTES} GB: a client keeps its last rounds"
    return Check("store", enough, f"{folder} can be written, {free:.1f} GB free", remedy)
