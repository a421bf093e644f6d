"""Which method of unlearning comes near a federation that never saw the facts, and where the memory is?

python benchmarks/unlearning.py --to docs/results/unlearning --seeds 0 1 2

For each way to share and each seed a federation learns once and another is retrained without the facts of
its target. Every method goes on from a copy of the learned one. What each has forgotten is measured after
aggregation, beside the retrained one, as `fedsa-lora evaluate --unlearning` does; the results are kept in
DIR/measured.jsonl, and what is there is not made again. Prints the table and writes DIR/table.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedsa_lora.analysis.unlearning import evaluate_unlearning
from fedsa_lora.files import write_atomically
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl

METHODS = ("grad_ascent", "grad_diff", "npo", "simnpo", "dpo", "rmu", "drop_b")
SPLITS = {
    "FedSA": "split=share_a",
    "FedIT": "split=share_ab",
    "FFA": "split=ffa",
}
MEASURED = "measured.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/unlearning"), help="folder of the runs")
    parser.add_argument("--experiment", default="unlearn/authors")
    parser.add_argument("--words", nargs="*", default=[], help="overrides of all runs")
    parser.add_argument("--splits", nargs="*", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", nargs=3, type=int, default=[4, 1, 1], help="of each phase")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for split in options.splits:
            for row in measured(options, split, seed):
                line = {key: row[key] for key in ("split", "method", "seed")} | row["targets"]["0"]["forget"]
                print(json.dumps(line), flush=True)
    page = table([row for row in read_jsonl(options.to / MEASURED) if row["split"] in options.splits])
    write_atomically(options.to / "table.md", page.encode())
    print(page)


def measured(options: argparse.Namespace, split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Make what is not recorded yet of a way to share and a seed, and measure it."""
    path = options.to / MEASURED
    done = {(r["split"], r["method"], r["seed"]) for r in (read_jsonl(path) if path.exists() else [])}
    learn, _, recover = options.rounds
    common = [
        f"experiment={options.experiment}",
        *options.words,
        SPLITS[split],
        f"seed={seed}",
        "run.report=false",
    ]
    folder = options.runs / f"{split}-{seed}"
    phases = [
        f"unlearning.{n}={c}" for n, c in zip(("learn", "unlearn", "recover"), options.rounds, strict=True)
    ]
    methods = [m for m in options.methods if m != "drop_b" or split == "FedSA"]
    wanted = [m for m in ("none", *methods) if (split, m, seed) not in done]
    if not wanted:
        return
    learned = made(folder / "learned", [*common, "unlearning=none", f"federation.rounds={learn}"])
    retrained = made(
        folder / "retrained", [*common, "unlearning=retrain", f"federation.rounds={learn + recover}"]
    )
    for method in wanted:
        place = learned
        if method != "none":
            words = [f"unlearning={method}", *phases, f"federation.rounds={sum(options.rounds)}"]
            place = branch(learned, folder / method, [*common, *words])
        found = evaluate_unlearning(place, retrained)
        row = {**found, "split": split, "method": method, "seed": seed}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        yield row
        if method != "none":
            shutil.rmtree(place)


def made(folder: Path, words: Sequence[str]) -> Path:
    """The run, made unless it is there whole."""
    if not (folder / "summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run_in_process([*words, f"run.dir={folder}"])
    return folder


def branch(learned: Path, folder: Path, words: Sequence[str]) -> Path:
    """A copy of a run that goes on by other words."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(learned, folder)
    run_in_process([*words, f"run.dir={folder}", "run.resume=true"])
    return folder


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each way to share and method, means over seeds."""
    columns = {
        "forget NLL": lambda r: target(r)["forget"]["nll"],
        "retrained": lambda r: r["retrained"]["0"]["forget"]["nll"],
        "distance": lambda r: abs(against(r)["forget_nll_distance"]),
        "log truth ratio, distance": lambda r: abs(against(r)["log_truth_ratio_distance"]),
        "quality p": lambda r: against(r)["forget_quality_p"],
        "privleak": lambda r: against(r)["privleak"],
        "kept NLL": lambda r: target(r)["retain"]["nll"],
        "others' kept NLL": lambda r: fmean(o["retain_nll"] for o in r["others"].values()),
        "others' forget NLL": lambda r: fmean(o["forget_nll"] for o in r["others"].values()),
        "stories": lambda r: target(r)["utility_nll"],
        "utility": lambda r: target(r)["model_utility"],
        "A with B = 0": lambda r: r["shared"]["without_b"],
        "relearned 5 steps": lambda r: r["relearning"]["this"]["5"]["seen"],
        "other half at 20": lambda r: r["relearning"]["this"]["20"]["unseen"],
    }
    lines = [
        f"| shares | method | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for split in dict.fromkeys(row["split"] for row in rows):
        for method in dict.fromkeys(row["method"] for row in rows):
            found = [row for row in rows if (row["split"], row["method"]) == (split, method)]
            if found:
                shown = [words([value(row) for row in found]) for value in columns.values()]
                lines.append(f"| {split} | {method} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def target(row: dict[str, Any]) -> dict[str, Any]:
    """What the first target's own model knows."""
    found: dict[str, Any] = next(iter(row["targets"].values()))
    return found


def against(row: dict[str, Any]) -> dict[str, Any]:
    """The same beside the retrained one."""
    found: dict[str, Any] = next(iter(row["against_retrained"].values()))
    return found


def words(values: Sequence[float | None]) -> str:
    """Mean, and standard deviation over seeds where there are several; "-" where it was not measured."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    mean = f"{fmean(values):.3g}"
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):.2g}"


if __name__ == "__main__":
    main()
