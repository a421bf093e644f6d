"""Memory of the parts of a model that is cut: ``python benchmarks/split_memory.py``.

A separate process holds the whole model, the client's part or the server's and takes two steps of AdamW;
states and gradients that come from the other side are random. The memory is the most that the kernel counted
for it (Linux alone; ``ru_maxrss`` would count the process that started it as well) above what it held before
it had a model. GPT-2 has random weights, which take the same room; SmolLM2 is measured where it has been
imported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fedsa_lora.client import build
from fedsa_lora.config.compose import load
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.cut.parts import Ends, trunk_states
from fedsa_lora.learning.cut.trained import Trained
from fedsa_lora.server.build import build_trunk, skeleton
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.imported import cache
from fedsa_lora.tasks.task import Batch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
STEPS = 2  # the optimizer has its moments after the first
TOKENIZER = "model.tokenizer=pkg://fedsa_lora/pretrained/stories260k"
Row: TypeAlias = "dict[str, Any]"


def measured() -> list[Row]:
    """What each part of each model holds and needs."""
    found = [*of_model("stories260k", ["experiment=split/tiny"], (8, 64))]
    if (cache() / "smollm2_135m").is_dir():
        found += of_model("SmolLM2-135M", ["experiment=split/smollm2"], (2, 64))
    else:
        print("SmolLM2 is left out: fedsa-lora import smollm2_135m has not been run here")
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        words = ["experiment=split/gpt2", f"model.path={folder}", TOKENIZER]
        found += of_model("GPT-2", words, (8, 128))
    return found


def of_model(name: str, words: Sequence[str], size: tuple[int, int]) -> Iterator[Row]:
    """A row for each part of a model, whose step is of so many texts and tokens."""
    for part in ("whole", "client", "server"):
        command = [sys.executable, __file__, "--part", part, "--size", *map(str, size), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        yield {"model": name, "size": size, "part": part, **json.loads(done.stdout.splitlines()[-1])}


def cost(words: Sequence[str], part: str, size: tuple[int, int]) -> Row:
    """The cost of a part in this process, in bytes and CPU seconds of a step."""
    config = load(words)
    empty = skeleton(config)  # has all libraries loaded
    RESET.write_text("5")  # the peak is counted from here
    before = _bytes("VmRSS")
    model = made(config, empty, part)
    held = sum(parameter.numel() for parameter in model.module.parameters())
    start = empty.initial(config.seed)
    values = {name: start[name] for name in model.layout.names}
    trained = Trained(model, values, config.split(model.layout).trained, config.train, STEPS)
    began = time.process_time()
    for _ in range(STEPS):
        with trained.lent(training=True):
            step(config, model, part, size)
        trained.step(None)
    seconds = (time.process_time() - began) / STEPS
    row = {"parameters": held, "lora": sum(spec.size for spec in model.layout), "seconds": seconds}
    return row | {"peak": _bytes("VmHWM") - before, "libraries": before}


def made(config: RunConfig, empty: AdapterModel, part: str) -> AdapterModel:
    """The model of a part, with adapters."""
    if part == "server":
        trunk = build_trunk(config, empty)
        assert trunk is not None
        return trunk.model
    return build.model(config.whole if part == "whole" else config)


def step(config: RunConfig, model: AdapterModel, part: str, size: tuple[int, int]) -> None:
    """Forward and backward through a part, on random texts."""
    ids = torch.randint(5, 500, size)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    if part == "whole":
        torch.autograd.backward(config.task.loss(model.module, batch))
    elif part == "client":
        client_step(config, model, batch)
    else:
        states = torch.randn(*size, _width(model), requires_grad=True)
        behind = trunk_states(model.module, states, batch["attention_mask"])
        behind.backward(torch.randn_like(behind))


def client_step(config: RunConfig, model: AdapterModel, batch: Batch) -> None:
    """As a client takes it: h1 is sent, h2 answered with its gradient, and h1 computed again for its own."""
    assert config.cut is not None
    ends = Ends(model.module, config.cut)
    with torch.no_grad():
        sent = ends.bottom(batch)
    received = torch.randn_like(sent).requires_grad_()
    torch.autograd.backward(config.task.loss(ends.top(received), batch))
    ends.bottom(batch).backward(torch.randn_like(sent))


def page(found: Sequence[Row]) -> str:
    """A table of what each part holds and needs."""
    lines = [
        "Memory, a process for each part: parameters that it holds, in float32, and the most that it took in "
        "two steps above its libraries.",
        "",
        "| model, texts x tokens | part | parameters | of these LoRA | parameters, MB | peak, MB "
        "| CPU s a step |",
        f"|{'---|' * 7}",
    ]
    for row in found:
        texts, tokens = row["size"]
        cells = [f"{row['model']}, {texts} x {tokens}", row["part"], f"{row['parameters']:,}"]
        cells += [f"{row['lora']:,}", f"{4 * row['parameters'] / 1e6:,.0f}", f"{row['peak'] / 1e6:,.0f}"]
        lines.append(f"| {' | '.join(cells)} | {row['seconds']:.3f} |")
    return "\n".join(lines) + "\n"


def _width(model: AdapterModel) -> int:
    module: Any = model.module
    return int(module.config.hidden_size)


def _bytes(name: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--part", choices=["whole", "client", "server"], help="this alone, of a run")
    parser.add_argument("--size", nargs=2, type=int, default=[8, 64], help="texts and tokens of a step")
    options = parser.parse_intermixed_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.part is None:
        print(page(measured()))
    else:
        print(json.dumps(cost(options.words, options.part, tuple(options.size))))


if __name__ == "__main__":
    main()
