"""Which method of unlearning comes near a federation that never saw the facts, and where the memory is?

python benchmarks/unlearning.py --to docs/results/unlearning --seeds 0 1 2

For each way to share and each seed a federation learns once and another is retrained without the facts of
its target. Every method continues from a copy of the learned one: it unlearns, which is measured in the
target's model, and recovers. What each has forgotten is measured after aggregation, beside the retrained
one, as `fedsa-lora evaluate --unlearning` does; the results are kept in DIR/measured.jsonl, and what is there
is not made again. Prints the tables and writes DIR/table.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeAlias

import numpy as np

from fedsa_lora.analysis.unlearning import Views, evaluate_unlearning
from fedsa_lora.config.compose import read_config
from fedsa_lora.files import write_atomically
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.measures import interval
from fedsa_lora.runs.reading import read_jsonl

LEARN = 4  # rounds
METHODS = {  # name, and the words of its run
    "none": [],
    "grad_ascent": ["unlearning=grad_ascent"],
    "grad_diff": ["unlearning=grad_diff"],
    "npo": ["unlearning=npo"],
    "simnpo": ["unlearning=simnpo"],
    "dpo": ["unlearning=dpo"],
    "rmu": ["unlearning=rmu"],
    "npo, B alone": ["unlearning=npo", "unlearning.only_local=true"],
    "drop_b": ["unlearning=drop_b"],
    "drop_b, recover 4": ["unlearning=drop_b"],
}
RECOVER = {"drop_b, recover 4": 4}  # rounds, where it is not one
OF_B = ("npo, B alone", "drop_b", "drop_b, recover 4")  # they need a B of the target's own
SPLITS = {
    "FedSA": "split=share_a",
    "FedIT": "split=share_ab",
    "FFA": "split=ffa",
}
MEASURED = "measured.jsonl"
Row: TypeAlias = "dict[str, Any]"
Column: TypeAlias = "Callable[[Row], float | None]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/unlearning"), help="folder of the runs")
    parser.add_argument("--experiment", default="unlearn/authors")
    parser.add_argument("--words", nargs="*", default=[], help="overrides of all runs")
    parser.add_argument("--splits", nargs="*", default=list(SPLITS), choices=SPLITS)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for split in options.splits:
            for row in measured(options, split, seed):
                line = {key: row[key] for key in ("split", "method", "seed")} | row["targets"]["0"]["forget"]
                print(json.dumps(line), flush=True)
    rows = read_jsonl(options.to / MEASURED)
    page = "\n".join(make(rows) for make in (forgotten, remembered, traces))
    write_atomically(options.to / "table.md", page.encode())
    print(page)


def measured(options: argparse.Namespace, split: str, seed: int) -> Iterator[Row]:
    """Make what is not recorded yet of a way to share and a seed, and measure it."""
    path = options.to / MEASURED
    done = {(r["split"], r["method"], r["seed"]) for r in (read_jsonl(path) if path.exists() else [])}
    methods = [m for m in options.methods if split == "FedSA" or m not in OF_B]
    wanted = [m for m in methods if (split, m, seed) not in done]
    if not wanted:
        return
    common = [f"experiment={options.experiment}", *options.words, SPLITS[split], f"seed={seed}"]
    common.append("run.report=false")
    folder = options.runs / f"{split}-{seed}"
    learned = made(folder / "learned", [*common, "unlearning=none", f"federation.rounds={LEARN}"])
    retrained = made(folder / "retrained", [*common, "unlearning=retrain", f"federation.rounds={LEARN + 1}"])
    for method in wanted:
        began = time.process_time()
        place, unlearned = learned, {}
        if method != "none":
            place = branch(learned, folder / method)
            unlearned = go_on(place, [*common, *METHODS[method]], recover=0)
            go_on(place, [*common, *METHODS[method]], recover=RECOVER.get(method, 1))
        taken = time.process_time() - began
        found = evaluate_unlearning(place, retrained)
        row = {**found, "split": split, "method": method, "seed": seed}
        row |= {"before_recovery": unlearned, "cpu_seconds": taken}
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


def branch(learned: Path, folder: Path) -> Path:
    """A copy of a run, to continue with other overrides."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(learned, folder))


def go_on(place: Path, words: Sequence[str], recover: int) -> Row:
    """One round of unlearning and some of recovery, or the latter alone where the former was made. Returns
    the losses of the target's own model."""
    phases = [f"unlearning.learn={LEARN}", "unlearning.unlearn=1", f"unlearning.recover={recover}"]
    rounds = f"federation.rounds={LEARN + 1 + recover}"
    run_in_process([*words, *phases, rounds, f"run.dir={place}", "run.resume=true"])
    views = Views(place, read_config(place))
    return views.of_client(views.targets[0])


def forgotten(rows: Sequence[Row]) -> str:
    """How near each method comes to the retrained federation, and what it harms: means over seeds."""
    learned = {(r["split"], r["seed"]): r for r in rows if r["method"] == "none"}
    columns: dict[str, Column] = {
        "before recovery": lambda r: r["before_recovery"].get("forget_nll"),
        "forget NLL": lambda r: target(r)["forget"]["nll"],
        "retrained": lambda r: r["retrained"]["0"]["forget"]["nll"],
        "distance": lambda r: abs(against(r)["forget_nll_distance"]),
        "log truth ratio, distance": lambda r: abs(against(r)["log_truth_ratio_distance"]),
        "quality p": lambda r: against(r)["forget_quality_p"],
        "privleak": lambda r: against(r)["privleak"],
        "kept NLL": lambda r: target(r)["retain"]["nll"],
        "others' kept NLL": others_kept,
        "stories": lambda r: target(r)["utility_nll"],
        "utility": lambda r: target(r)["model_utility"],
        "within the bar": lambda r: within(r, learned[r["split"], r["seed"]]),
    }
    return table(rows, columns)


def remembered(rows: Sequence[Row]) -> str:
    """Where the memory is: in what all share, read with other B, and relearned from it."""
    columns: dict[str, Column] = {
        "A with B = 0": lambda r: r["shared"]["without_b"],
        "with the mean B": lambda r: r["shared"].get("mean_b"),
        "others' own models": lambda r: fmean(o["forget_nll"] for o in r["others"].values()),
        "relearned in 5 steps": lambda r: r["relearning"]["this"]["5"]["seen"],
        "from retrained": lambda r: r["relearning"]["retrained"]["5"]["seen"],
        "from the start": lambda r: r["relearning"]["initial"]["5"]["seen"],
        "other half after 20": lambda r: r["relearning"]["this"]["20"]["unseen"],
        "from retrained ": lambda r: r["relearning"]["retrained"]["20"]["unseen"],
        "from the start ": lambda r: r["relearning"]["initial"]["20"]["unseen"],
        "CPU seconds": lambda r: r["cpu_seconds"],
    }
    return table(rows, columns)


def traces(rows: Sequence[Row]) -> str:
    """How much more easily facts come back from what is shared than from what the retrained federation
    shares: differences of loss in nats with the 95 % t interval over seeds."""
    lines = [
        "| shares | method | lead on the trained half, 5 steps | lead on the other half, 20 steps |",
        "|---|---|---|---|",
    ]
    for (split, method), found in grouped(rows):
        leads = [lead(found, "5", "seen"), lead(found, "20", "unseen")]
        lines.append(f"| {split} | {method} | {' | '.join(leads)} |")
    return "\n".join(lines) + "\n"


def lead(rows: Sequence[Row], steps: str, half: str) -> str:
    """The lead of what a run shares over what the retrained one shares, with its interval."""
    left = [row["relearning"] for row in rows]
    leads = np.asarray([r["retrained"][steps][half] - r["this"][steps][half] for r in left])
    if len(leads) == 1:
        return f"{leads[0]:+.3f} (one seed)"
    low, high = interval(leads)
    return f"{leads.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def table(rows: Sequence[Row], columns: Mapping[str, Column]) -> str:
    """Markdown: a row for each way to share and method, means over seeds."""
    lines = [f"| shares | method | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for (split, method), found in grouped(rows):
        shown = [words([value(row) for row in found]) for value in columns.values()]
        lines.append(f"| {split} | {method} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def grouped(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, str], list[Row]]]:
    """The rows of each way to share and method, in the order of both."""
    for key in itertools.product(SPLITS, METHODS):
        if found := [row for row in rows if (row["split"], row["method"]) == key]:
            yield key, found


def within(row: Row, learned: Row) -> bool:
    """True where the target stands within a nat of the retrained model on what it was to forget, it and the
    others within .1 of the learned one on what they keep, and stories within .5."""
    return (
        abs(against(row)["forget_nll_distance"]) <= 1
        and abs(target(row)["retain"]["nll"] - target(learned)["retain"]["nll"]) <= 0.1
        and abs(others_kept(row) - others_kept(learned)) <= 0.1
        and abs(target(row)["utility_nll"] - target(learned)["utility_nll"]) <= 0.5
    )


def others_kept(row: Row) -> float:
    """The loss of the other clients on their own facts, a mean."""
    return fmean(other["retain_nll"] for other in row["others"].values())


def target(row: Row) -> Row:
    """What the first target's own model knows."""
    found: Row = next(iter(row["targets"].values()))
    return found


def against(row: Row) -> Row:
    """The same beside the retrained one."""
    found: Row = next(iter(row["against_retrained"].values()))
    return found


def words(values: Sequence[float | None]) -> str:
    """Mean, and standard deviation over seeds where there are several; of truths the number that are true;
    "-" where it was not measured."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    if all(isinstance(value, bool) for value in values):
        return f"{sum(values)} of {len(values)}"
    mean = f"{fmean(values):.3g}"
    return mean if len(values) < 2 else f"{mean} ± {stdev(values):.2g}"


if __name__ == "__main__":
    main()
