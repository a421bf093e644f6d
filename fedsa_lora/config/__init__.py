"""Configuration of a run: composed from files and overrides, bound to settings, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsa_lora.lazy import lazily

if TYPE_CHECKING:
    from fedsa_lora.config.compose import load, read_config

__all__ = ["load", "read_config"]

# what knows the words of a config knows nothing of Hydra
__getattr__, __dir__ = lazily("fedsa_lora.config.compose", __all__)
