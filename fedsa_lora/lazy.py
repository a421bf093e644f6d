"""Packages that load a module when one of its names is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any


def lazily(module: str, names: Collection[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and the ``__dir__`` of a package (PEP 562) that has these ``names`` from a
    ``module``."""

    def found(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(module), name)
        raise AttributeError(f"no attribute {name!r} here; there are {', '.join(sorted(names))}")

    return found, lambda: sorted(names)
