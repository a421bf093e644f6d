"""The size of a pass over several clients, in tokens and in rows."""

from __future__ import annotations

import torch

from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.cohort.fit import spread
from fedsa_lora.learning.memory import SHARE, pass_bytes
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.tasks.task import Examples, Task

ON_CPU = 4096  # tokens: more do not stay in a core's cache
ON_GPU = 45_056  # what MiniLM needs to fill a large GPU, by computation; not measured


def rounded(rows: int) -> int:
    """The next size of a pass: sizes are a 32nd to a 16th apart, so that few are ever used. oneDNN compiles a
    kernel for each size and product, which takes longer than a pass does in bf16."""
    step = 1 << max(0, rows.bit_length() - 5)
    return -(-rows // step) * step


def pass_tokens(
    model: AdapterModel, task: Task, examples: Examples, settings: TrainSettings, processes: int
) -> int:
    """The most tokens of a pass over several clients on a GPU with so many ``processes``: what its memory has
    room for, whoever uses it at the moment, as results differ in the last bits by what is in a pass."""
    memory = torch.cuda.get_device_properties(model.device).total_memory
    weights = sum(parameter.nbytes for parameter in model.module.parameters())
    each = token_bytes(model, task, examples, settings)
    return tokens_within(memory // processes - weights, each)


def token_bytes(model: AdapterModel, task: Task, examples: Examples, settings: TrainSettings) -> float:
    """The bytes that a training pass takes for each token; of images, for each of an image's patches."""
    tokens = int(examples.lengths.max()) * spread(model)
    return pass_bytes(model, task, examples, settings) / tokens


def tokens_within(memory: int, each: float) -> int:
    """The tokens that a process's memory has room for, each of so many bytes; one at least."""
    return min(ON_GPU, max(1, int(SHARE * memory / each)))
