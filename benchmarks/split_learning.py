"""What split learning costs, and what the server can read of a client's texts.

python benchmarks/split_learning.py --to docs/results/split

Loss by step and by byte against central training and FedSA, number formats on the wire, memory of each part,
and texts that the server recovers from h1. Each table is also one of ``--tables``; what it was made of is
kept in DIR/NAME.json, and DIR/table.md has all that are there. ``--words experiment=split/smollm2`` does the
same for another run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeAlias

import inversion
import split_memory
import torch
from torch.nn.utils import clip_grad_norm_

from fedsa_lora.client import build
from fedsa_lora.config.compose import load
from fedsa_lora.files import write_atomically
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.training import make_optimizer, predict, round_batches
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.measures import interval
from fedsa_lora.runs.reading import read_jsonl
from fedsa_lora.seeds import generator
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.task import Examples, measured

FORMATS = ("fp32", "bf16", "int8")
ID_BYTES = 2  # of a token, where texts themselves are sent
Row: TypeAlias = "dict[str, Any]"


def main() -> None:
    tables = {"steps": steps, "formats": formats, "memory": memory, "inversion": inverted}
    pages = {
        "steps": steps_page,
        "formats": formats_page,
        "memory": split_memory.page,
        "inversion": inversion.page,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/split"), help="folder of the runs")
    parser.add_argument("--words", nargs="*", default=["experiment=split/tiny"], help="the run")
    parser.add_argument("--tables", nargs="*", default=list(tables), choices=tables)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--most-rounds", type=int, default=60, help="of FedSA at equal bytes")
    parser.add_argument("--bottoms", nargs="*", type=int, default=[1, 2, 3], help="blocks before h1")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    options.to.mkdir(parents=True, exist_ok=True)
    for name in options.tables:
        found = tables[name](options)
        text = json.dumps(found, indent=1)
        write_atomically(options.to / f"{name}.json", text.encode())
        print(pages[name](found), flush=True)
    made = {name: options.to / f"{name}.json" for name in tables}
    there = [pages[name](json.loads(path.read_text())) for name, path in made.items() if path.exists()]
    write_atomically(options.to / "table.md", "\n".join(there).encode())


def steps(options: argparse.Namespace) -> Row:
    """A split run, central training on the same batches, and FedSA for as many rounds and as many bytes."""
    words = [*options.words, f"seed={options.seeds[0]}"]
    split = run(words, options.runs)
    config = load(words)
    rounds, budget = len(split), split[-1]["bytes"]
    one = run([*words, "cut=none"], options.runs)
    affordable = int(budget / one[-1]["bytes"] * rounds)
    fedsa = one
    if affordable > rounds:
        longer = min(affordable, options.most_rounds)
        fedsa = run([*words, "cut=none", f"federation.rounds={longer}"], options.runs)
    return {
        "words": words,
        "split": split,
        "central": central(config),
        "fedsa": fedsa,
        "affordable": affordable,
    }


def run(words: Sequence[str], runs: Path) -> list[Row]:
    """The rounds of a run: losses, held-out loss and perplexity as means over clients, and bytes in training
    since its beginning, all clients together. It is made unless it is there whole."""
    folder = runs / "-".join(words).replace("/", "_")
    if not (folder / "summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run_in_process([*words, "run.report=false", f"run.dir={folder}"])
    rows, clients = read_jsonl(folder / "rounds.jsonl"), read_jsonl(folder / "clients.jsonl")
    found = []
    for row in rows:
        own = [client for client in clients if client["round"] == row["round"]]
        fit = [client for client in own if client["phase"] == "fit"]
        held_out = [client for client in own if client["phase"] == "evaluate"]
        activations = traffic(row)
        found.append(
            {
                "round": row["round"],
                "losses": row.get("step_losses", [row["loss"]]),
                "held_out": fmean(client["loss"] for client in held_out),
                "perplexity": row["perplexity"],
                "of_round": activations + sum(client["bytes_up"] + client["bytes_down"] for client in fit),
                "of_step": activations / max(1, sum(client["steps"] for client in fit)),
            }
        )
    for row, total in zip(found, accumulate(row["of_round"] for row in found), strict=True):
        row["bytes"] = total
    return found


def traffic(row: Row) -> int:
    """Bytes of the messages between the parts in the training of a round; 0 of a model in one piece."""
    sent: Mapping[str, int] = row.get("fit_step_bytes", {})
    return sum(sent.values())


def central(config: RunConfig) -> Row:
    """The whole model in one place: each step is over the batches that the clients have at that step of the
    split run, and its loss the mean of theirs."""
    whole, task = config.whole, config.task
    model = build.model(whole)
    model.write(model.initial(config.seed))
    trained = config.split(model.layout).trained
    model.set_trainable(trained)
    optimizer = make_optimizer([s for s in model.layout if s.name in trained], model.parameter, config.train)
    clients = {str(at): task.load_client(str(at)) for at in range(config.federation.clients)}
    tokens = sum(int(data.train.lengths.sum()) for data in clients.values())
    found: list[Row] = []
    for round_ in range(1, config.federation.rounds + 1):
        batches = [
            round_batches(data.train.lengths, config.train, generator(config.seed, "batches", name, round_))
            for name, data in clients.items()
        ]
        losses = []
        model.set_mode(training=True)
        for step in zip(*batches, strict=True):
            parts = [
                task.collate(d.train, indices) for d, indices in zip(clients.values(), step, strict=True)
            ]
            optimizer.zero_grad(set_to_none=True)
            each = [task.loss(model.module, part) / len(parts) for part in parts]
            torch.autograd.backward(each)
            if config.train.clip_norm is not None:
                clip_grad_norm_([*map(model.parameter, sorted(trained))], config.train.clip_norm)
            optimizer.step()
            losses.append(sum(loss.item() for loss in each))
        tests = [held_out(config, model, data.test) for data in clients.values()]
        mean = {name: fmean(test[name] for test in tests) for name in ("loss", "perplexity")}
        found.append({"losses": losses, "held_out": mean["loss"], "perplexity": mean["perplexity"]})
    return {"rounds": found, "bytes": ID_BYTES * tokens}


def held_out(config: RunConfig, model: AdapterModel, examples: Examples) -> dict[str, float]:
    """The measures of a whole model on examples."""
    return measured(config.task, predict(model, config.task, examples, config.train), examples.labels)


def formats(options: argparse.Namespace) -> list[Row]:
    """The last round of the run in each number format, for each seed."""
    found = []
    for form in FORMATS:
        for seed in options.seeds:
            words = [*options.words, f"cut.dtype={form}", f"seed={seed}"]
            last = run(words, options.runs)[-1]
            found.append({"format": form, "seed": seed, **last})
    return found


def memory(options: argparse.Namespace) -> list[Row]:
    return split_memory.measured()


def inverted(options: argparse.Namespace) -> Row:
    return inversion.measured(options.words, options.bottoms, options.seeds[0])


def steps_page(found: Row) -> str:
    """Loss and perplexity by round, and at equal bytes."""
    lines = [
        f"Loss by step and by byte: {' '.join(found['words'])}. Loss: mean over the steps of a round and "
        "over clients. MB: training, all clients, up and down, since the beginning.",
        "",
        "| round | split: loss | perplexity | MB | central: loss | perplexity | FedSA: loss | perplexity "
        "| MB |",
        f"|{'---|' * 9}",
    ]
    central, fedsa = found["central"]["rounds"], found["fedsa"]
    for split, whole, shared in zip(found["split"], central, fedsa, strict=False):
        cells = [*scores(split), megabytes(split), *scores(whole), *scores(shared), megabytes(shared)]
        lines.append(f"| {split['round']} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Central training moves the texts once, {found['central']['bytes'] / 1e6:.2f} MB of ids.",
        "",
    ]
    lines += ["| MB | split: rounds | perplexity | FedSA: rounds | perplexity |", f"|{'---|' * 5}"]
    for split in found["split"]:
        last = [row for row in fedsa if row["bytes"] <= split["bytes"]]
        if last:
            cells = [f"{split['perplexity']:.2f}", str(last[-1]["round"]), f"{last[-1]['perplexity']:.2f}"]
            lines.append(f"| {megabytes(split)} | {split['round']} | {' | '.join(cells)} |")
    if len(fedsa) < found["affordable"]:
        lines += ["", f"FedSA's {len(fedsa)} rounds are fewer than the {found['affordable']} of equal bytes."]
    return "\n".join(lines) + "\n"


def scores(row: Row) -> list[str]:
    return [f"{fmean(row['losses']):.3f}", f"{row['perplexity']:.2f}"]


def megabytes(row: Row) -> str:
    return f"{row['bytes'] / 1e6:.2f}"


def formats_page(found: Sequence[Row]) -> str:
    """Held-out loss and bytes of a client's step by number format, means over seeds."""
    lines = [
        "Number formats of activations and gradients: means ± standard deviation over "
        f"{len({row['seed'] for row in found})} seeds, in brackets the 95 % interval of paired differences.",
        "",
        "| cut.dtype | kB a step | held-out loss | against fp32 | perplexity |",
        f"|{'---|' * 5}",
    ]
    exact = [row["held_out"] for row in found if row["format"] == "fp32"]
    for form in FORMATS:
        rows = [row for row in found if row["format"] == form]
        if not rows:
            continue
        losses = [row["held_out"] for row in rows]
        apart = [loss - other for loss, other in zip(losses, exact, strict=True)]
        low, high = interval(apart)
        against = "" if form == "fp32" else f"{fmean(apart):+.4f} [{low:.4f}, {high:.4f}]"
        size = fmean(row["of_step"] for row in rows) / 1e3
        cells = [f"{size:.1f}", spread(losses), against, spread([row["perplexity"] for row in rows])]
        lines.append(f"| {form} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation where there are several."""
    mean = f"{fmean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):.3f}"


if __name__ == "__main__":
    main()
