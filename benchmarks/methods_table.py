"""Every split, codec, rule and variant on real data, compared fairly: `make methods-table`.

Six cells: two data sets in each of three regimes. In a cell each method has the same data, seeds and
search: learning rates 1.5e-3, 4e-3 and 1e-2 on the validation part of the first seed, the best of them
on the test part of every seed. The target is what training alone reaches; bytes to it are those of all
training messages, up and down, until the mean over clients first reaches it. The clients and strategies
are those of `flwr run`, in this process. Writes `docs/results/table-CELL.json` and `docs/results/table.md`.

    python benchmarks/methods_table.py            # about two and a half hours on two cores
    python benchmarks/methods_table.py --quick    # about ten minutes: half the rounds, two cells, six methods
    python benchmarks/methods_table.py --resume   # go on where an interrupted one stopped
    python benchmarks/methods_table.py --recorded # the tables from what was recorded
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from cells import KEPT, Cell, mean, measured_once

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
AMAZON = Path(os.environ.get("FEDSA_LORA_AMAZON", ROOT.parent / "shared" / "data" / "amazon_multidomain"))
RATES = (1.5e-3, 4e-3, 1e-2)
SEEDS = (0, 1)
ALONE = "local only"

SIZES = ["experiment=quickstart", "federation.train_examples=[60,100]"]
MEANINGS = [*SIZES, "federation.label_meaning=per_client"]
COMMON = [*SIZES, "federation.label_meaning=common"]
SKEWED = [*COMMON, "partition=dirichlet", "federation.partitioner.alpha=0.1"]
CELLS: dict[str, list[str]] = {
    "meanings-snips": [*MEANINGS, "task=snips"],
    "meanings-clinc_banking": [*MEANINGS, "task=clinc150_banking"],
    "domains-clinc150": [*COMMON, "task=clinc150", "partition=natural", "federation.test_examples=100"],
    "domains-amazon": [
        *COMMON, "task=text", f"task.dataset={AMAZON}", "task.group=domain", "task.test_split=validation",
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
    "FLoRA": ["split=share_ab", "strategy=flora", "common"],
    "FlexLoRA": ["split=share_ab", "strategy=flexlora", "common"],
    "FedSVD": ["split=fedsvd", "strategy=fedsvd", "common"],
    "FedRot": ["split=share_ab", "strategy=fedrot", "common"],
    "FedSA, int8": ["split=share_a", "codec=int8", "own"],
    "FedSA, top-k .1": ["split=share_a", "codec=topk", "own"],
    "FedSA, top-k .1 int8 both ways": ["split=share_a", "codec=topk_int8", "downlink=topk_int8", "own"],
}
FURTHER: dict[str, list[str]] = {
    "A of the last 3 layers": ["split=layer_wise", "own"],
    "A of the 3 layers of least variance": ["split=least_variance", "own"],
    "importance by heterogeneity": ["split=importance", "split.threshold=heterogeneity", "own"],
    "FedSA, int4": ["split=share_a", "codec=int4", "own"],
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
FURTHER_IN = ("meanings-snips",)
QUICK = (ALONE, "FedSA (share A)", "FedIT (share A and B)", "soft", "FedEx", "FedSA, int8")
QUICK_CELLS = ("meanings-snips", "dirichlet-banking77")


def methods(cell: str, quick: bool) -> dict[str, list[str]]:
    """The words of each method that is tried in a cell."""
    found = {name: EVERYWHERE[name] for name in QUICK} if quick else dict(EVERYWHERE)
    if not quick and cell in FURTHER_IN:
        found |= FURTHER
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


def run_cell(name: str, quick: bool, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Every method of a cell: the search, then every seed."""
    words = methods(name, quick)
    asked = [(method, lr) for method in words for lr in RATES]
    searched = [Cell(tuple(words[method]), lr, SEEDS[0], "validation") for method, lr in asked]
    tried: dict[str, dict[float, float]] = {method: {} for method in words}
    for (method, lr), result in zip(asked, pool.map(measured_once, searched), strict=True):
        tried[method][lr] = mean(result)
        print(f"  {name} {method:40} lr {lr:g}: validation {mean(result):.3f}", flush=True)
    best = {method: max(rates, key=lambda lr, r=rates: r[lr]) for method, rates in tried.items()}
    seeds = SEEDS[:1] if quick else SEEDS
    measured = [Cell(tuple(words[m]), best[m], seed, "test", every=2) for m in words for seed in seeds]
    results = list(pool.map(measured_once, measured))
    runs = {m: results[i * len(seeds) : (i + 1) * len(seeds)] for i, m in enumerate(words)}
    return {
        "cell": name, "overrides": CELLS[name], "seeds": list(seeds), "rates": list(RATES),
        "methods": [
            {
                "method": method, "overrides": [w for w in words[method] if w not in CELLS[name]],
                "lr": best[method], "validation": {f"{lr:g}": a for lr, a in tried[method].items()},
                "runs": runs[method],
            }
            for method in words
        ],
    }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """A Markdown table, best mean first."""
    target = average([mean(run) for run in runs_of(report, ALONE)])
    lines = [
        f"Target: {target:.3f}, the mean of training alone. kB are those of one client and round, up / down.",
        "",
        "| method | lr | mean | by seed | worst client | kB up | kB down | MB to target | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in sorted(report["methods"], key=lambda m: -average([mean(r) for r in m["runs"]])):
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


def runs_of(report: dict[str, Any], method: str) -> list[dict[str, Any]]:
    return next(entry["runs"] for entry in report["methods"] if entry["method"] == method)


def to_target(run: dict[str, Any], target: float) -> int | None:
    """Bytes of all training messages until the mean over clients first reached the target."""
    return next((point["bytes"] for point in run["curve"] if point["accuracy"] >= target), None)


def average(values: list[float]) -> float:
    return sum(values) / len(values)


def document(folder: Path) -> str:
    """All recorded cells as one page."""
    parts = ["# Methods compared", "", (__doc__ or "").strip().split("\n\n")[1], ""]
    for name in CELLS:
        path = folder / f"table-{name}.json"
        if path.is_file():
            report = json.loads(path.read_text())
            words = " ".join(word for word in CELLS[name] if not word.startswith("task.dataset="))
            parts += [f"## {name}", "", f"`{words}`, seeds {report['seeds']}", "", table(report), ""]
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
    chosen = options.cells or (QUICK_CELLS if options.quick else CELLS)
    if not AMAZON.is_dir() and "domains-amazon" in chosen:
        print(f"domains-amazon is left out: {AMAZON} is not there (FEDSA_LORA_AMAZON names it)")
        chosen = [name for name in chosen if name != "domains-amazon"]
    if not (options.resume or options.recorded):
        shutil.rmtree(KEPT, ignore_errors=True)
    with ProcessPoolExecutor(options.processes) as pool:
        for name in [] if options.recorded else chosen:
            report = run_cell(name, options.quick, pool)
            (folder / f"table-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "table.md").write_text(document(folder))
    print(document(folder))


if __name__ == "__main__":
    main()
