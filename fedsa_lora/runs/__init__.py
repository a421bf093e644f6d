"""The record of a run: ``load_run(path)`` reads a run directory as pandas frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsa_lora.analysis.frames import Run, load_run

__all__ = ["Run", "load_run"]


def __getattr__(name: str) -> Any:
    # frames know models, which the server and the command line do without
    if name in __all__:
        from fedsa_lora.analysis import frames

        return getattr(frames, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
