"""What each way to split an adapter brings in a regime: `python benchmarks/methods.py [REGIME ...]`.

For every method the learning rate is chosen from 1e-3, 2e-3 and 4e-3 on the validation part, on the
first seed; while the best lies at an end of what was tried, the next power of two is tried as well. Then
every seed is run with it and measured on the test part. The same clients and strategies as in `flwr run`
are driven in this process. Writes `docs/results/methods-REGIME.json` and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from cells import Cell, mean, measure

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
RATES = (1e-3, 2e-3, 4e-3)
MOST_RATES = 6

REGIMES = {
    "quickstart": ["experiment=quickstart"],
    "common": ["experiment=quickstart", "federation.label_meaning=common"],
    "banking77": [
        "experiment=quickstart", "task=banking77", "partition=dirichlet", "federation.label_meaning=common",
        "head=local",
    ],
}  # fmt: skip
METHODS: dict[str, dict[str, list[str]]] = {
    "quickstart": {
        "FedSA (share A), frozen head": ["split=share_a", "head=frozen"],
        "share B, frozen head": ["split=share_b", "head=frozen"],
        "FFA (share B, A frozen), frozen head": ["split=ffa", "head=frozen"],
        "FedIT (share A and B), frozen head": ["split=share_ab", "head=frozen"],
        "local only, frozen head": ["split=local_only", "head=frozen"],
        "central, frozen head": ["central", "head=frozen"],
        "FedSA (share A), local head": ["split=share_a", "head=local"],
        "share B, local head": ["split=share_b", "head=local"],
        "share A and B, local head": ["split=share_ab", "head=local"],
        "FedIT (share A and B), shared head": ["split=share_ab", "head=shared"],
        "local only, local head": ["split=local_only", "head=local"],
    },
    "common": {
        "FedSA (share A), frozen head": ["split=share_a", "head=frozen"],
        "FedIT (share A and B), frozen head": ["split=share_ab", "head=frozen"],
        "FedIT (share A and B), shared head": ["split=share_ab", "head=shared"],
        "local only, frozen head": ["split=local_only", "head=frozen"],
        "local only, local head": ["split=local_only", "head=local"],
    },
    "banking77": {
        "FedSA (share A), local head": ["split=share_a", "head=local"],
        "share A and B, local head": ["split=share_ab", "head=local"],
        "FedIT (share A and B), shared head": ["split=share_ab", "head=shared"],
        "local only, local head": ["split=local_only", "head=local"],
    },
}


def cell(regime: str, method: str, lr: float, seed: int) -> Cell:
    return Cell((*REGIMES[regime], *METHODS[regime][method]), lr, seed)


def untried(tried: dict[float, float]) -> list[float]:
    """Rates to try next: the first three, then outward while the best is at an end."""
    if not tried:
        return list(RATES)
    best = max(tried, key=lambda lr: tried[lr])
    if len(tried) >= MOST_RATES or min(tried) < best < max(tried):
        return []
    return [best / 2 if best == min(tried) else best * 2]


def search(regime: str, seed: int, pool: ProcessPoolExecutor) -> dict[str, dict[float, float]]:
    """Mean validation accuracy by method and learning rate."""
    tried: dict[str, dict[float, float]] = {method: {} for method in METHODS[regime]}
    while asked := [(method, lr) for method in tried for lr in untried(tried[method])]:
        cells = [cell(regime, method, lr, seed) for method, lr in asked]
        for (method, lr), result in zip(asked, pool.map(measure, cells), strict=True):
            tried[method][lr] = mean(result, "validation")
            print(f"  {method:38} lr {lr:g}: validation {tried[method][lr]:.3f}", flush=True)
    return tried


def compare(regime: str, seeds: list[int], pool: ProcessPoolExecutor) -> dict[str, Any]:
    tried = search(regime, seeds[0], pool)
    best = {method: max(rates, key=lambda lr, r=rates: r[lr]) for method, rates in tried.items()}
    asked = [(method, seed) for method in best for seed in seeds]
    cells = [cell(regime, method, best[method], seed) for method, seed in asked]
    results = dict(zip(asked, pool.map(measure, cells), strict=True))
    return {
        "regime": regime, "overrides": REGIMES[regime], "seeds": seeds,
        "command": f"python benchmarks/methods.py {regime} --seeds {' '.join(map(str, seeds))}",
        "methods": [
            {
                "method": method, "overrides": METHODS[regime][method], "lr": best[method],
                "validation": {f"{lr:g}": accuracy for lr, accuracy in sorted(tried[method].items())},
                "runs": [{"seed": seed, **results[method, seed]} for seed in seeds],
            }
            for method in best
        ],
    }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """A Markdown table, best mean first."""
    lines = ["| method | lr | mean | by seed | worst client | MB up a round |", "|---|---|---|---|---|---|"]
    ordered = sorted(report["methods"], key=lambda m: -sum(mean(r) for r in m["runs"]))
    for entry in ordered:
        runs = entry["runs"]
        seeds = ", ".join(f"{mean(run):.3f}" for run in runs)
        average = sum(mean(run) for run in runs) / len(runs)
        worst = min(min(run["accuracy"].values()) for run in runs)
        clients = len(runs[0]["accuracy"])
        sent = "-" if runs[0]["bytes_up"] is None else f"{runs[0]['bytes_up'] * clients / 1e6:.2f}"
        cells = [entry["method"], f"{entry['lr']:g}", f"{average:.3f}", seeds, f"{worst:.3f}", sent]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("regimes", nargs="*", help=f"of {list(REGIMES)}; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--recorded", action="store_true", help="print the recorded tables, run nothing")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.processes) as pool:
        for regime in options.regimes or REGIMES:
            path = RESULTS / f"methods-{regime}.json"
            if not options.recorded:
                path.write_text(json.dumps(compare(regime, options.seeds, pool), indent=1) + "\n")
            report = json.loads(path.read_text())
            print(f"\n## {regime}: `{' '.join(REGIMES[regime])}`\n\n{table(report)}\n", flush=True)


if __name__ == "__main__":
    main()
