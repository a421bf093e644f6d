"""The part of a task that has defaults: what its exports hold beside the model, and what it can do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol


@dataclass(frozen=True)
class Code:
    """Python in a model card: the names that it imports, as (module, name), and its other lines."""

    imports: tuple[tuple[str, str], ...] = ()
    lines: tuple[str, ...] = ()


class TaskDefaults(Protocol):
    """Flags of a task, and its part of an export, which by default is a model alone."""

    classifies: ClassVar[bool] = False  # predictions are logits of classes
    by_client: ClassVar[bool] = False  # each machine is asked for its own clients' data

    def save_preprocessor(self, folder: Path) -> None:
        """Write what prepares the model's inputs, such as a tokenizer, into the folder of its weights."""
        return  # without it the method of a protocol is abstract

    def preprocessor_code(self, folder: str) -> Code:
        """Code of the model card that loads what ``save_preprocessor`` wrote; ``folder`` is a Python
        expression."""
        return Code()

    def usage(self) -> str:
        """Paragraphs of the model card (Markdown): how inputs are prepared and outputs read."""
        return ""

    def about_client(self, client: str) -> str:
        """A paragraph of the model card on the data of one client, where they differ from those of others."""
        return ""

    def model_code(self) -> tuple[str, str] | None:
        """Code of the model card for a model that is not of transformers: a line that imports what makes it,
        and an expression that makes it. None leaves that to the reader."""
        return None
