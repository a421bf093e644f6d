"""Memory and time of local training: ``python benchmarks/memory.py [presets | types] [OVERRIDE ...]``.

Each case is computed in a separate process that is forked from one which has everything loaded: the memory
is the most that it held above what it held before, as the kernel counts it (Linux alone), and the time is CPU
time on one thread. Without ``presets``: a step of eight examples by batch size, accumulation,
checkpoints and precision, on texts of ``--tokens`` random tokens. With ``presets``: the presets of LoRA on
client 0 of the experiment, after ``--steps`` steps, with the primary measure on its test part. With
``types``: the types of the frozen weights, from the file on: CPU seconds and memory of loading and of a step.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from fedsa_lora.config.compose import load
from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.learning.checkpointing import checkpoint_layers
from fedsa_lora.learning.job import Job, OneByOne, Outcome, settled
from fedsa_lora.learning.training import round_batches
from fedsa_lora.seeds import generator
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.task import Examples, measured

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
EXAMPLES = 8  # of a step
PRESETS = ("fast", "balanced", "high")
CASES: Mapping[str, list[str]] = {
    "batch_size=8": ["train.batch_size=8"],
    "batch_size=4 accumulate=2": ["train.batch_size=4", "train.accumulate=2"],
    "batch_size=1 accumulate=8": ["train.batch_size=1", "train.accumulate=8"],
    "gradient_checkpointing": ["train.batch_size=8", "train.gradient_checkpointing=true"],
    "checkpointing, batch_size=1 accumulate=8": [
        "train.batch_size=1",
        "train.accumulate=8",
        "train.gradient_checkpointing=true",
    ],
    "precision=bf16": ["train.batch_size=8", "train.precision=bf16"],
    "precision=bf16, checkpointing": [
        "train.batch_size=8",
        "train.precision=bf16",
        "train.gradient_checkpointing=true",
    ],
}
TYPES = (
    "model.dtype=fp32",
    "model.dtype=fp32 train.precision=bf16",
    "model.dtype=bf16 train.precision=bf16",
)


@dataclass(frozen=True)
class Cost:
    """Bytes above what the process held before: at most, and at the end what is its own and what is mapped
    from files; CPU seconds of a step, or of all where there is none; and what it computed."""

    bytes: int
    own: int
    mapped: int
    seconds: float
    outcome: Outcome | None


def made(config: RunConfig) -> AdapterModel:
    """The model of a config, as a client holds it."""
    model = AdapterModel(attach(config.task.build_model(seed=config.seed), config.lora, config.seed))
    model.hold_frozen(config.train.dtype)
    if config.train.gradient_checkpointing:
        checkpoint_layers(model)
    return model


def job_of(config: RunConfig, model: AdapterModel, examples: Examples) -> Job:
    """A job that trains what the split trains."""
    rng = generator(config.seed, "batches", "0", 1)
    return Job(
        values=initial_state(model.layout, config.seed),
        trained=config.split(model.layout).trained,
        examples=examples,
        settings=config.train,
        batches=round_batches(examples.lengths, config.train, rng),
    )


def cost(work: Callable[[], Outcome | None]) -> Cost:
    """The cost of some work in a process that is forked for it."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_measure, args=(work, theirs))
    process.start()
    theirs.close()
    found: Cost = ours.recv()
    process.join()
    return found


def _measure(work: Callable[[], Outcome | None], told: Connection) -> None:
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the steps before left to the allocator
    RESET.write_text("5")  # the peak is counted from here
    before = {name: _kilobytes(name) for name in ("VmRSS", "RssAnon", "RssFile")}
    began = time.process_time()
    outcome = work()
    seconds = (time.process_time() - began) / (outcome.report.steps if outcome else 1)
    own, mapped = (1024 * (_kilobytes(name) - before[name]) for name in ("RssAnon", "RssFile"))
    told.send(Cost(1024 * (_kilobytes("VmHWM") - before["VmRSS"]), own, mapped, seconds, outcome))


def _kilobytes(name: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def random_texts(examples: Examples, tokens: int) -> Examples:
    """As many texts as a step has, of so many tokens, with the features of the task's own."""
    ids = np.random.default_rng(0).integers(5, 500, (EXAMPLES, tokens))
    alike = {"input_ids": ids, "labels": ids, "attention_mask": np.ones_like(ids)}
    features = {name: [*alike.get(name, np.zeros_like(ids))] for name in examples.features}
    return Examples(features, examples.labels[:EXAMPLES], np.full(EXAMPLES, tokens))


def settings_table(words: list[str], tokens: int) -> None:
    """Print a line for each case: memory and seconds of a step, and both as a share of the first."""
    print(f"{EXAMPLES} texts of {tokens} tokens a step")
    print("| setting | MB | CPU s a step | memory | time |\n|---|---|---|---|---|")
    first, task = None, load(words).task
    examples = random_texts(task.load_client("0").train, tokens)
    for name, case in CASES.items():
        config = load([*words, *case, "train.steps=1", "train.epochs=null"])
        model = made(config)
        alone, one = OneByOne(model, task), job_of(config, model, examples)
        settled(*alone([replace(one, batches=[one.batches[0][:1]])]))  # builds kernels, finds dropout
        found = cost(lambda alone=alone, one=one: settled(*alone([one])))
        first = first or found
        shares = f"{found.bytes / first.bytes:.2f} | {found.seconds / first.seconds:.2f}"
        print(f"| `{name}` | {found.bytes / 1e6:,.0f} | {found.seconds:.2f} | {shares} |", flush=True)


def types_table(words: list[str], tokens: int) -> None:
    """Print a line for each type of the frozen weights: seconds and memory of loading them, and of a step."""
    print(f"{EXAMPLES} texts of {tokens} tokens a step")
    print("| setting | load, CPU s | own MB | MB mapped | peak with a step, MB | CPU s a step |")
    print("|---|---|---|---|---|---|")
    task = load(words).task
    examples = random_texts(task.load_client("0").train, tokens)
    for case in TYPES:
        config = load([*words, *case.split(), "train.batch_size=8", "train.steps=1", "train.epochs=null"])

        def step(config: RunConfig = config) -> Outcome:
            model = made(config)
            return settled(*OneByOne(model, task)([job_of(config, model, examples)]))

        loaded = cost(lambda config=config: made(config) and None)
        whole, model = cost(step), made(config)
        alone, job = OneByOne(model, task), job_of(config, model, examples)
        seconds = cost(lambda alone=alone, job=job: settled(*alone([job]))).seconds
        numbers = (found / 1e6 for found in (loaded.own, loaded.mapped, whole.bytes))
        columns = " | ".join(f"{number:,.0f}" for number in numbers)
        print(f"| `{case}` | {loaded.seconds:.1f} | {columns} | {seconds:.1f} |", flush=True)


def presets_table(words: list[str], steps: int) -> None:
    """Print a line for each preset: values of LoRA, memory, seconds of a step, and the measure after all."""
    print(f"after {steps} steps")
    print("| preset | values of A and B | MB | CPU s a step | before | after |\n|---|---|---|---|---|---|")
    for preset in PRESETS:
        config = load([*words, f"lora={preset}", f"train.steps={steps}", "train.epochs=null"])
        model, data = made(config), config.task.load_client("0")
        alone, job = OneByOne(model, config.task), job_of(config, model, data.train)
        settled(*alone([replace(job, batches=job.batches[:1])]))
        found = cost(lambda alone=alone, job=job: settled(*alone([job])))
        still = replace(job, batches=(), asked=[data.test])
        asked = alone([still, replace(still, values=found.outcome.values)])
        numbers = [_primary(config, data.test, settled(outcome)) for outcome in asked]
        size = sum(spec.size for spec in model.layout if spec.role in ("A", "B"))
        print(
            f"| `lora={preset}` | {size:,} | {found.bytes / 1e6:,.0f} | {found.seconds:.3f} "
            f"| {numbers[0]} | {numbers[1]} |",
            flush=True,
        )


def _primary(config: RunConfig, examples: Examples, outcome: Outcome) -> str:
    name = config.task.measures[0].name
    return f"{name} {measured(config.task, outcome.answers[0], examples.labels)[name]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_intermixed_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    words = [word for word in options.overrides if word not in ("presets", "types")]
    if "presets" in options.overrides:
        presets_table(words or ["experiment=lm/shakespeare"], options.steps)
    elif "types" in options.overrides:
        types_table(words or ["experiment=lm/shakespeare", "model=smollm2_135m"], options.tokens)
    else:
        settings_table(words or ["experiment=quickstart"], options.tokens)


if __name__ == "__main__":
    main()
