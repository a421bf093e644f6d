"""CPU time of a cohort over that of the same jobs one by one, side by side in one process.

    python benchmarks/cohort.py [--only NAME] [--repeat 5] [--json cohort.json]

Each row is one backbone, batch, number of clients and precision: five steps of every client, or the answers
to its test examples, on SNIPS requests, with the dropout of the backbone and of LoRA. Both trainers do the
same jobs on one thread, in every turn with other batches; a ratio is the median of those of the turns, and
below 1 the cohort is the faster one. Microseconds are by real token. Backbones: MiniLM of the quickstart, and
a random one of two layers of width 128.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fedsa_lora.config.compose import load
from fedsa_lora.learning.adapters import AdapterModel, attach, initial_state
from fedsa_lora.learning.cohort import Cohort, why_not
from fedsa_lora.learning.job import Job, OneByOne, Trainer, settled
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import round_batches
from fedsa_lora.seeds import generator
from fedsa_lora.tasks.task import Task

BACKBONES = {
    "minilm": ["experiment=quickstart", "federation.clients=16"],
    "tiny": [
        "experiment=smoke", "model.config.hidden_size=128", "model.config.intermediate_size=512",
        "federation.clients=16", "federation.train_examples=[60,100]", "federation.test_examples=60",
    ],
}  # fmt: skip
TRAINING = [
    ("tiny", 1, 16, "fp32"), ("tiny", 2, 16, "fp32"), ("tiny", 8, 16, "fp32"), ("minilm", 1, 10, "fp32"),
    ("minilm", 8, 2, "fp32"), ("minilm", 8, 10, "fp32"), ("minilm", 8, 16, "fp32"),
    ("minilm", 16, 10, "fp32"), ("minilm", 16, 16, "fp32"), ("minilm", 8, 10, "bf16"),
    ("minilm", 8, 16, "bf16"), ("minilm", 16, 10, "bf16"),
]  # fmt: skip
ANSWERS = [("tiny", 10, "fp32"), ("minilm", 1, "fp32"), ("minilm", 10, "fp32"), ("minilm", 10, "bf16")]


@dataclass(frozen=True)
class Row:
    """CPU microseconds by real token of both, and the median ratio."""

    what: str
    backbone: str
    batch: int
    clients: int
    precision: str
    alone: float
    cohort: float
    ratio: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", choices=[*BACKBONES], help="one backbone")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| | backbone | batch | clients | precision | one by one, us | cohort, us | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for row in measured(given.only, given.repeat):
        rows.append(asdict(row))
        about = f"| {row.what} | {row.backbone} | {row.batch or '-'} | {row.clients} | {row.precision} "
        print(f"{about}| {row.alone:.0f} | {row.cohort:.0f} | {row.ratio:.2f} |")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


def measured(only: str | None, repeat: int) -> Iterator[Row]:
    """Every row of the backbones asked for."""
    for backbone in [only] if only else BACKBONES:
        task: Task = load(BACKBONES[backbone]).task
        for precision in ("fp32", "bf16"):
            model = AdapterModel(attach(task.build_model(seed=0), load(BACKBONES[backbone]).lora))
            if precision == "bf16":
                model.hold_frozen(torch.bfloat16)
            for name, batch, clients, kind in TRAINING:
                if (name, kind) == (backbone, precision):
                    turns = [
                        [training(task, model, str(k), batch, kind, turn) for k in range(clients)]
                        for turn in range(repeat + 1)
                    ]
                    yield compared("training", backbone, batch, kind, task, model, turns)
            for name, clients, kind in ANSWERS:
                if (name, kind) == (backbone, precision):
                    jobs = [asking(task, model, str(k), kind) for k in range(clients)]
                    yield compared("answers", backbone, 0, kind, task, model, [jobs] * (repeat + 1))


def training(task: Task, model: AdapterModel, client: str, batch: int, precision: str, turn: int) -> Job:
    """Five steps of the adapters of a client."""
    examples = task.load_client(client).train
    settings = TrainSettings(lr=8e-3, steps=5, batch_size=batch, precision=precision)  # type: ignore[arg-type]
    return Job(
        values=initial_state(model.layout, 0),
        trained=frozenset(spec.name for spec in model.layout if spec.role != "head"),
        examples=examples,
        settings=settings,
        batches=round_batches(examples.lengths, settings, generator(turn, "batches", client)),
        dropout=int(client),
    )


def asking(task: Task, model: AdapterModel, client: str, precision: str) -> Job:
    """The answers of a client's model to its test examples."""
    data = task.load_client(client)
    settings = TrainSettings(precision=precision)  # type: ignore[arg-type]
    values = initial_state(model.layout, 0)
    return Job(values=values, trained=frozenset(), examples=data.train, settings=settings, asked=(data.test,))


def compared(
    what: str,
    backbone: str,
    batch: int,
    precision: str,
    task: Task,
    model: AdapterModel,
    turns: list[list[Job]],
) -> Row:
    """One row; the first of the turns is not counted."""
    if reason := why_not(turns[0][0], model, task):
        raise SystemExit(f"{backbone}: no cohort, as {reason}")
    clients = len(turns[0])
    trainers: list[Trainer] = [OneByOne(model, task), Cohort(model, task, clients)]
    spent = [[seconds(trainer, jobs) for trainer in trainers] for jobs in turns][1:]
    by_token = [
        [took / sum(map(tokens, jobs)) * 1e6 for took in each]
        for each, jobs in zip(spent, turns[1:], strict=True)
    ]
    alone, cohort = (statistics.median(each[at] for each in by_token) for at in (0, 1))
    ratio = statistics.median(each[1] / each[0] for each in by_token)
    return Row(what, backbone, batch, clients, precision, alone, cohort, ratio)


def tokens(job: Job) -> int:
    """The real tokens of a job."""
    trained = sum(int(job.examples.lengths[batch].sum()) for batch in job.batches)
    return trained + sum(int(asked.lengths.sum()) for asked in job.asked)


def seconds(trainer: Trainer, jobs: list[Job]) -> float:
    """CPU seconds of the jobs."""
    began = time.process_time()
    for outcome in trainer(jobs):
        settled(outcome)
    return time.process_time() - began


if __name__ == "__main__":
    main()
