"""The client's side of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsa_lora.client.client import FedSAClient

__all__ = ["FedSAClient"]


def __getattr__(name: str) -> Any:
    # a client trains; what only reads its folder does without torch
    if name in __all__:
        from fedsa_lora.client import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
