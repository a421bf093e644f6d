"""Configuration of a run: composed from files and overrides, bound to settings, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsa_lora.config.compose import load, read_config

__all__ = ["load", "read_config"]


def __getattr__(name: str) -> Any:
    # what knows the words of a config knows nothing of Hydra
    if name in __all__:
        from fedsa_lora.config import compose

        return getattr(compose, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
