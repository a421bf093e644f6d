"""The record of a run: ``load_run(path)`` reads a run directory as pandas frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsa_lora.lazy import lazily

if TYPE_CHECKING:
    from fedsa_lora.analysis.frames import Run, load_run

__all__ = ["Run", "load_run"]

# frames know models, which the server and the command line do without
__getattr__, __dir__ = lazily("fedsa_lora.analysis.frames", __all__)
