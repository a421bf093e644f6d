"""Exchanges of split learning at a client: a round of steps, or an evaluation, from message to message."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.common import Scalar
from numpy.typing import NDArray
from safetensors.numpy import save

from fedsa_lora.client.cut_bench import CutBench
from fedsa_lora.client.round import OpenRound
from fedsa_lora.errors import StoreError, WireError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.arrays import Arrays, NamedArrays
from fedsa_lora.exchange.step import Step
from fedsa_lora.files import tensors_in, write_atomically
from fedsa_lora.learning.cut.parts import Ends
from fedsa_lora.learning.job import as_array
from fedsa_lora.learning.local_round import LocalRound
from fedsa_lora.learning.moving import to_device
from fedsa_lora.learning.training import seed_generators
from fedsa_lora.seeds import torch_seed
from fedsa_lora.tasks.task import Batch

FILE = "session.safetensors"
Indices = NDArray[np.int64]
_STATE, _BROADCAST, _ARRAY, _BYTES = "state/", "broadcast/", "array/", "bytes/"


@dataclass(frozen=True)
class Answer:
    """An answer to Flower: arrays, a number of examples, metrics, and the loss of an evaluation."""

    arrays: list[NDArray[Any]]
    examples: int
    metrics: dict[str, Scalar]
    loss: float = 0.0


@dataclass(frozen=True)
class Kept:
    """An exchange as it was kept after an answer, in a file: arrays, and the words beside them."""

    path: Path
    words: dict[str, Any]

    @property
    def number(self) -> int:
        """The number of the message that was answered last."""
        return int(self.words["number"])

    @property
    def answer(self) -> Answer:
        """The answer to it."""
        bytes_ = {key: array.tobytes() for key, array in self.under(_BYTES).items()}
        arrays = self.under(_ARRAY)
        kept = self.words["answer"]
        metrics = {**kept["metrics"], **bytes_}
        return Answer([arrays[name] for name in sorted(arrays)], kept["examples"], metrics, kept["loss"])

    def under(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The arrays whose names begin so, less that."""
        return {n.removeprefix(prefix): a for n, a in self.arrays.items() if n.startswith(prefix)}

    @cached_property
    def arrays(self) -> NamedArrays:
        """All arrays. Raises StoreError as ``Session.last`` does."""
        with _opened(self.path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    @property
    def header(self) -> wire.BroadcastHeader:
        """The header of the message that opened it."""
        return wire.read_header({wire.KEY: self.words["header"]}, wire.BroadcastHeader)

    @property
    def parameters(self) -> list[NDArray[np.float32]]:
        """The arrays of that message."""
        arrays = self.under(_BROADCAST)
        return [arrays[name] for name in sorted(arrays)]


class Session(ABC):
    """An exchange: the message that opened it, and all that the next answer needs."""

    def __init__(
        self,
        header: wire.BroadcastHeader,
        parameters: list[NDArray[np.float32]],
        opened: OpenRound,
        local: LocalRound,
        bench: CutBench,
        ends: Ends,
    ) -> None:
        self.header, self.parameters, self.opened, self.local = header, parameters, opened, local
        self.bench, self.ends = bench, ends
        self.number = -1  # of the message that was answered last

    @property
    @abstractmethod
    def end(self) -> int:
        """The number of the last message."""

    @abstractmethod
    def advance(self, step: Step) -> Step | None:
        """The answer to a message; None where it was the last one."""

    @abstractmethod
    def ids(self) -> Iterator[NDArray[np.int64]]:
        """The labels of the examples that are at hand."""

    @abstractmethod
    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """All that changes from message to message."""

    @abstractmethod
    def go_on(self, arrays: NamedArrays, words: dict[str, Any]) -> None:
        """Take in what ``state`` returned."""

    def is_at(self, kept: Kept) -> bool:
        """True where this is the exchange that was kept, and not another one or an earlier moment of it."""
        mine = (type(self).__name__, self.number, _text(self.header))
        return mine == (kept.words["kind"], kept.number, kept.words["header"])

    def keep(self, folder: Path, answer: Answer) -> None:
        """Write down where the exchange stands, and what is answered now."""
        arrays, words = self.state()
        found: dict[str, NDArray[Any]] = {_STATE + name: array for name, array in arrays.items()}
        found |= {f"{_BROADCAST}{at}": array for at, array in enumerate(self.parameters)}
        found |= {f"{_ARRAY}{at}": array for at, array in enumerate(answer.arrays)}
        metrics = dict(answer.metrics)
        for key, content in answer.metrics.items():
            if isinstance(content, bytes):
                found[_BYTES + key] = np.frombuffer(content, np.uint8)
                del metrics[key]
        told = {"examples": answer.examples, "metrics": metrics, "loss": answer.loss}
        words |= {
            "kind": type(self).__name__,
            "number": self.number,
            "header": _text(self.header),
            "answer": told,
        }
        contents = {name: np.asarray(array, order="C") for name, array in found.items()}
        write_atomically(folder / FILE, save(contents, {"words": json.dumps(words)}), durable=False)

    def restore(self, kept: Kept) -> None:
        """Resume from what was kept."""
        self.number = kept.number
        self.go_on(kept.under(_STATE), kept.words)

    def follow(self, step: Step) -> None:
        """Take the number of a message. Raises WireError unless it is the next one."""
        if step.number != self.number + 1 or step.number > self.end:
            raise WireError(
                f"received message {step.number} of an exchange, expected {self.number + 1} of 0 to "
                f"{self.end}"
            )
        self.number += 1

    @staticmethod
    def last(folder: Path) -> Kept | None:
        """The exchange that is kept in a client's folder. Raises StoreError for a damaged file."""
        path = folder / FILE
        if not path.exists():
            return None
        with _opened(path) as file:
            return Kept(path, json.loads((file.metadata() or {})["words"]))

    @staticmethod
    def forget(folder: Path) -> None:
        """End the exchange: nothing is kept of it."""
        (folder / FILE).unlink(missing_ok=True)

    def _batch(self, indices: Indices) -> Batch:
        task, device = self.bench.task, self.bench.model.device
        return to_device(task.collate(self.local.examples, indices), device)

    def _seed(self, part: str, step: int, micro: int) -> None:
        key = (self.local.client, self.local.round, step, micro, part)
        seed_generators(torch_seed(self.local.seed, "cut dropout", *key), self.bench.model.device)

    def _up(self, batch: Batch, **fields: Any) -> Step:
        """h1 of a batch, to be sent."""
        with torch.no_grad():
            states = self.ends.bottom(batch)
        tensors = {"h1": as_array(states), **fields.pop("tensors", {})}
        mask = batch["attention_mask"].bool().cpu().numpy()
        return Step(self.number, tensors, mask, **fields)

    def _states(self, step: Step, name: str) -> torch.Tensor:
        """Received states or gradients. Raises WireError where the message has none."""
        if name not in step.tensors:
            raise WireError(f"message {step.number} of the exchange lacks {name}")
        return torch.from_numpy(step.tensors[name]).to(self.bench.model.device)


def _opened(path: Path) -> AbstractContextManager[Any]:
    return tensors_in(
        path,
        lambda reason: StoreError(
            f"{path} is unreadable ({reason}): remove it, and the client starts its round again",
            sent="its stored exchange is unreadable: it starts its round again",
        ),
    )


def _text(header: wire.BroadcastHeader) -> str:
    text: str = wire.write_header(header)[wire.KEY]  # type: ignore[assignment]
    return text
