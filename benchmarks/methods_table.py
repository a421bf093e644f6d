"""Every split, codec, rule and variant on real data, compared fairly: `make methods-table`.

Six cells: two data sets in each of three regimes. In a cell each method has the same data, seeds and
search: learning rates 1.5e-3, 4e-3 and 1e-2 by the validation part of the first seed, the best of them
on every seed, measured on the test part every third round. The target is what training alone reaches;
bytes to it are those of all training messages, up and down, until the mean over clients first reaches it.
The clients and strategies are those of `flwr run`, in this process. Every run is a line of
`docs/results/runs.jsonl`; `docs/results/table.md` is made of them.

    python benchmarks/methods_table.py            # somewhat under three hours on two cores
    python benchmarks/methods_table.py --quick    # about ten minutes: half the rounds, two cells, six methods
    python benchmarks/methods_table.py --resume   # go on where an interrupted one stopped
    python benchmarks/methods_table.py --recorded # the tables from what was recorded
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from cells import Cell, mean, measure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
AMAZON = Path(os.environ.get("FEDSA_LORA_AMAZON", ROOT.parent / "shared" / "data" / "amazon_multidomain"))
RATES = (1.5e-3, 4e-3, 1e-2)
SEEDS = (0, 1)
ALONE = "local only"
AT_ONCE = 4  # methods that are searched together

SIZES = ["experiment=quickstart", "federation.train_examples=[60,100]"]
MEANINGS = [*SIZES, "federation.label_meaning=per_client"]
COMMON = [*SIZES, "federation.label_meaning=common"]
SKEWED = [*COMMON, "partition=dirichlet", "federation.partitioner.alpha=0.1"]
CELLS: dict[str, list[str]] = {
    "meanings-snips": [*MEANINGS, "task=snips"],
    "meanings-clinc_banking": [*MEANINGS, "task=clinc150_banking"],
    "domains-clinc150": [*COMMON, "task=clinc150", "partition=natural", "federation.test_examples=100"],
    "domains-amazon": [
        *COMMON, "task=text", "task.dataset=AMAZON", "task.group=domain", "task.test_split=validation",
        "partition=natural", "federation.clients=5", "federation.test_examples=60",
    ],
    "dirichlet-banking77": [*SKEWED, "task=banking77", "federation.test_examples=60"],
    "dirichlet-snips": [*SKEWED, "task=snips", "federation.test_examples=60"],
}  # fmt: skip

# Words of a method; "own" and "common" are the head: frozen where meanings differ, else local or shared.
EVERYWHERE: dict[str, list[str]] = {
    ALONE: ["split=local_only", "own"],
    "FedSA (share A)": ["split=share_a", "own"],
    "share B": ["split=share_b", "own"],
    "FedIT (share A and B)": ["split=share_ab", "common"],
    "share A and B, own head": ["split=share_ab", "own"],
    "FFA": ["split=ffa", "common"],
    "RoLoRA (alternate)": ["split=alternate", "common"],
    "soft": ["split=soft", "soft"],
    "share A, soft head": ["split=share_a", "soft"],
    "importance, upper half of A": ["split=importance", "own"],
    "FedEx": ["split=share_ab", "strategy=fedex", "common"],
    "FedSA, int8": ["split=share_a", "codec=int8", "own"],
    "FedSA, top-k .1": ["split=share_a", "codec=topk", "own"],
}
# What only some cells show: rules for factors where averaging everything works, the rest where A matters.
FACTORS: dict[str, list[str]] = {
    "FLoRA": ["split=share_ab", "strategy=flora", "common"],
    "FlexLoRA": ["split=share_ab", "strategy=flexlora", "common"],
    "FedSVD": ["split=fedsvd", "strategy=fedsvd", "common"],
    "FedRot": ["split=share_ab", "strategy=fedrot", "common"],
}
REST: dict[str, list[str]] = {
    "A of the last 3 layers": ["split=layer_wise", "own"],
    "A of the 3 layers of least variance": ["split=least_variance", "own"],
    "importance by heterogeneity": ["split=importance", "split.threshold=heterogeneity", "own"],
    "FedSA, int4": ["split=share_a", "codec=int4", "own"],
    "FedSA, top-k .1 int8 both ways": ["split=share_a", "codec=topk_int8", "downlink=topk_int8", "own"],
    "FedSA, top-k .1 without feedback": ["split=share_a", "codec=topk", "codec.error_feedback=false", "own"],
    "FedSA, top-k .01": ["split=share_a", "codec=topk", "codec.ratio=0.01", "own"],
    "FedSA, random-k .1": ["split=share_a", "codec=randomk", "own"],
    "FedSA, FedProx": ["split=share_a", "strategy=fedprox", "own"],
    "FedSA, FedAvgM": ["split=share_a", "strategy=fedavgm", "own"],
    "FedSA, FedAdam": ["split=share_a", "strategy=fedadam", "own"],
    "FedSA, FedYogi": ["split=share_a", "strategy=fedyogi", "own"],
    "FedSA, FedAdagrad": ["split=share_a", "strategy=fedadagrad", "own"],
    "FedSA, median": ["split=share_a", "strategy=fedmedian", "own"],
    "FedSA, trimmed mean": ["split=share_a", "strategy=fedtrimmedavg", "own"],
    "FedSA, Krum": ["split=share_a", "strategy=krum", "own"],
    "FedSA, Multi-Krum": ["split=share_a", "strategy=multikrum", "own"],
    "FedSA, Bulyan": ["split=share_a", "strategy=bulyan", "own"],
    "FedSA, q-FedAvg": ["split=share_a", "strategy=qfedavg", "own"],
    "FedSA, rsLoRA": ["split=share_a", "lora=rslora", "own"],
    "FedSA, DoRA": ["split=share_a", "lora=dora", "own"],
    "FedSA, VeRA": ["split=share_a", "lora=vera", "own"],
    "FedSA, PiSSA": ["split=share_a", "lora=pissa", "own"],
    "FedSA, orthogonal": ["split=share_a", "lora=orthogonal", "own"],
}
FURTHER = {"domains-clinc150": FACTORS, "meanings-snips": REST}
QUICK = (ALONE, "FedSA (share A)", "FedIT (share A and B)", "soft", "FedEx", "FedSA, int8")
QUICK_CELLS = ("meanings-snips", "dirichlet-banking77")


def methods(cell: str, quick: bool) -> dict[str, list[str]]:
    """The words of each method that is tried in a cell."""
    found = {name: EVERYWHERE[name] for name in QUICK} if quick else EVERYWHERE | FURTHER.get(cell, {})
    heads = {"own": "head=local", "common": "head=shared", "soft": "head=soft"}
    if cell.startswith("meanings"):
        heads = dict.fromkeys(heads, "head=frozen")
        found.pop("share A, soft head", None)  # with a frozen head it is FedSA
        found.pop("share A and B, own head", None)  # and this is FedIT
    rounds = ["federation.rounds=6"] if quick else []
    return {
        name: [*CELLS[cell], *(heads.get(word, word) for word in words), *rounds]
        for name, words in found.items()
    }


class Record:
    """Runs that were measured, a line of a file each, so that an interrupted comparison can go on."""

    def __init__(self, path: Path, pool: ProcessPoolExecutor | None) -> None:
        self.path, self.pool = path, pool
        lines = path.read_text().splitlines() if path.is_file() else []
        self.known = {_key(row): row for row in map(json.loads, lines)}

    def measure(self, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results of runs, those that are not known yet by making them."""
        if self.pool is not None:
            missing = [run for run in runs if _key(run) not in self.known]
            cells = [Cell(_located(run["words"]), run["lr"], run["seed"], every=3) for run in missing]
            for run, result in zip(missing, self.pool.map(measure, cells), strict=True):
                row = {**run, "result": result}
                self.known[_key(run)] = row
                with self.path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                accuracies = f"validation {mean(result, 'validation'):.3f}, test {mean(result):.3f}"
                print(f"  {run['cell']} {run['method']:36} lr {run['lr']:g} {accuracies}", flush=True)
        return [self.known[_key(run)]["result"] for run in runs if _key(run) in self.known]


def _located(words: list[str]) -> tuple[str, ...]:
    """The words of a run here: the place of data that the project may not ship is not recorded."""
    return tuple(word.replace("=AMAZON", f"={AMAZON}") for word in words)


def _key(run: dict[str, Any]) -> str:
    return json.dumps([run["words"], run["lr"], run["seed"]])


def compare(name: str, quick: bool, record: Record) -> list[dict[str, Any]]:
    """Every method of a cell, a few at a time, so that those of an interrupted comparison are complete."""
    words = list(methods(name, quick).items())
    some = [dict(words[i : i + AT_ONCE]) for i in range(0, len(words), AT_ONCE)]
    return [entry for part in some for entry in compare_some(name, part, quick, record)]


def compare_some(name: str, words: dict[str, list[str]], quick: bool, record: Record) -> list[dict[str, Any]]:
    """The search on the first seed, and the best rate on every seed. Methods of which a run is missing in
    the record are left out."""
    runs = [
        {"cell": name, "method": method, "lr": lr, "seed": SEEDS[0], "words": words[method]}
        for method in words
        for lr in RATES
    ]
    record.measure(runs)
    best = {}
    for method in words:
        tried = [run for run in runs if run["method"] == method]
        results = record.measure(tried) if all(_key(run) in record.known for run in tried) else []
        if results:
            best[method] = max(zip(tried, results, strict=True), key=lambda r: mean(r[1], "validation"))[0]
    seeds = SEEDS[:1] if quick else SEEDS
    asked = {method: [{**run, "seed": seed} for seed in seeds] for method, run in best.items()}
    record.measure([run for each in asked.values() for run in each])
    found = [{"method": m, "lr": best[m]["lr"], "runs": record.measure(each)} for m, each in asked.items()]
    return [entry for entry in found if len(entry["runs"]) == len(seeds)]


def table(entries: list[dict[str, Any]]) -> str:
    """A Markdown table, best mean first."""
    alone = [mean(run) for entry in entries if entry["method"] == ALONE for run in entry["runs"]]
    target = average(alone) if alone else 1.0
    lines = [
        f"Target: {target:.3f}, the mean of training alone. kB are those of one client and round.",
        "",
        "| method | lr | mean | by seed | worst client | kB up | kB down | MB to target | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in sorted(entries, key=lambda m: -average([mean(r) for r in m["runs"]])):
        runs = entry["runs"]
        reached = [to_target(run, target) for run in runs]
        error = runs[0]["aggregation_error"]
        cells = [
            entry["method"], f"{entry['lr']:g}", f"{average([mean(r) for r in runs]):.3f}",
            ", ".join(f"{mean(run):.3f}" for run in runs),
            f"{min(min(run['accuracy'].values()) for run in runs):.3f}",
            f"{average([r['bytes_up'] for r in runs]) / 1e3:.1f}",
            f"{average([r['bytes_down'] for r in runs]) / 1e3:.1f}",
            ", ".join("-" if b is None else f"{b / 1e6:.1f}" for b in reached),
            "" if error is None else f"{error:.1e}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def to_target(run: dict[str, Any], target: float) -> int | None:
    """Bytes of all training messages until the mean over clients first reached the target."""
    return next((point["bytes"] for point in run["curve"] if point["accuracy"] >= target), None)


def average(values: list[float]) -> float:
    return sum(values) / len(values)


def document(quick: bool, record: Record) -> str:
    """All that is recorded as one page."""
    parts = ["# Methods compared", "", (__doc__ or "").strip().split("\n\n")[1], ""]
    for name in CELLS:
        if entries := compare(name, quick, record):
            parts += [f"## {name}", "", f"`{' '.join(CELLS[name])}`", "", table(entries), ""]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cells", nargs="*", help=f"of {list(CELLS)}; default: all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--recorded", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    folder = ROOT / "build" / "methods-table-quick" if options.quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "runs.jsonl"
    chosen = list(options.cells or (QUICK_CELLS if options.quick else CELLS))
    if not AMAZON.is_dir() and "domains-amazon" in chosen:
        print(f"domains-amazon is left out: {AMAZON} is not there (FEDSA_LORA_AMAZON names it)")
        chosen.remove("domains-amazon")
    if not (options.resume or options.recorded):
        path.unlink(missing_ok=True)
    if not options.recorded:
        with ProcessPoolExecutor(options.processes) as pool:
            record = Record(path, pool)
            for name in chosen:
                compare(name, options.quick, record)
    page = document(options.quick, Record(path, None))
    (folder / "table.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
