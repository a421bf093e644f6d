"""The client's side of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsa_lora.lazy import lazily

if TYPE_CHECKING:
    from fedsa_lora.client.client import FedSAClient

__all__ = ["FedSAClient"]

# a client trains; what only reads its folder does without torch
__getattr__, __dir__ = lazily("fedsa_lora.client.client", __all__)
