"""Memory: what a step of training takes, what is free, and the batch that fits."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.masking import masked
from fedsa_lora.learning.settings import LARGEST_BATCH, TrainSettings
from fedsa_lora.learning.training import Objective, dropout_sites
from fedsa_lora.tasks.task import Examples, Task

SHARE = 0.4  # of the free memory for tensors: masks of dropout and what allocators hold take as much again
CGROUP = Path("/sys/fs/cgroup")
GROUPS = (  # by version: what is allowed, what is taken, and what of that is files that can be read again
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


class Tally(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make within it: those that are ``alive``, and the
    ``most`` that were at a time. What was there before is not counted, nor is what kernels use themselves."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.most = 0
        self._bytes: dict[int, int] = {}  # by storage

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, made)
        return made

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._bytes:
            return
        self._bytes[key] = storage.nbytes()
        self.alive += storage.nbytes()
        self.most = max(self.most, self.alive)
        weakref.finalize(storage, self._end, key)

    def _end(self, key: int) -> None:
        self.alive -= self._bytes.pop(key)


@dataclass(frozen=True)
class Room:
    """Room for batches: ``each``, bytes that a pass takes for one example of so many ``tokens``, the longest;
    ``free`` bytes for so many ``processes``."""

    each: int
    tokens: int
    free: int
    processes: int

    @property
    def batch(self) -> int:
        """The largest power of two up to ``LARGEST_BATCH`` that fits; one where not even that does."""
        fits = int(SHARE * self.free / self.processes / self.each)
        return min(1 << max(1, fits).bit_length() - 1, LARGEST_BATCH)

    def __str__(self) -> str:
        return (
            f"a pass over an example of {self.tokens} tokens takes {self.each / 1e6:.1f} MB, and "
            f"{self.free / 1e6:,.0f} MB are free for {self.processes} processes"
        )


def room(
    model: AdapterModel, task: Task, examples: Examples, settings: TrainSettings, processes: int
) -> Room:
    """The room for batches of these examples in the memory that is free now."""
    each = pass_bytes(model, task, examples, settings)
    return Room(each, int(examples.lengths.max()), free_bytes(model.device), processes)


def pass_bytes(model: AdapterModel, task: Task, examples: Examples, settings: TrainSettings) -> int:
    """The most bytes of tensors at a time in a forward and a backward pass over the longest example."""
    longest = np.array([examples.lengths.argmax()])
    model.set_trainable(frozenset(model.layout.names))
    model.set_mode(training=True)
    objective = Objective(model, task, examples, settings)
    sites = dropout_sites(objective, longest)
    with masked(model.module, sites, seed=0), Tally() as tally:
        torch.autograd.backward(objective.loss(longest))
    model.set_trainable(frozenset())
    model.set_mode(training=False)
    most: int = tally.most
    return most


def free_bytes(device: torch.device) -> int:
    """The memory that is free on a device; of the CPU's what the machine has, or the container allows."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min(int(psutil.virtual_memory().available), _allowed_bytes())


def _allowed_bytes() -> int:
    """The memory that the control group of this process leaves; without one that bounds it the machine's."""
    for limit, used, cached in GROUPS:
        try:
            most = int((CGROUP / limit).read_text())
            taken = int((CGROUP / used).read_text())
            lines = (CGROUP / cached).read_text().splitlines()
        except (OSError, ValueError):  # another version of control groups, or "max"
            continue
        files = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return max(0, most - taken + files)
    return int(psutil.virtual_memory().total)
