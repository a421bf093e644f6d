"""Is advice any good? `python benchmarks/advice.py [REGIME ...] [--record FILE] [--to DIR]`.

For each regime of a grid (personalisation) the probes of `fedsa-lora advise` are run on its words and
first seed. How far on the test part the advice is then behind the best method is read from a recorded
comparison of the whole grid: prints that, and how often the advice, and each candidate if it were always
chosen, is within a point of the best. Probes are kept and not run again. Six candidates at two rates for
each regime: about two minutes on two cores, twenty for the whole grid.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from statistics import fmean

from rich.console import Console

from fedsa_lora.compare.advice import advise
from fedsa_lora.compare.comparison import Comparison
from fedsa_lora.compare.grid import Grid, read_grid
from fedsa_lora.compare.making import at_once
from fedsa_lora.compare.probe import probe, probe_grid

NEAR = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("regimes", nargs="*", help="default: all that are recorded")
    parser.add_argument("--grid", default="personalisation")
    parser.add_argument("--record", type=Path, help="the runs (default: runs/compare-GRID/runs.jsonl)")
    parser.add_argument("--to", type=Path, default=Path("runs/advice"))
    parser.add_argument("--processes", type=int, default=at_once())
    options = parser.parse_args()
    grid = read_grid(options.grid)
    folder = Path("runs") / f"compare-{options.grid}"
    recorded = Comparison.recorded(grid, folder, options.record)
    behind: dict[str, list[float]] = {}
    print("| regime | best | mean | advice | behind, points |\n|---|---|---|---|---|")
    for regime in options.regimes or [name for name in recorded.regimes if recorded.scores(name)]:
        probes = probe(probe_grid(words(grid, regime)), options.to / regime, options.processes, Console())
        chosen, best = advise(probes).chosen, recorded.scores(regime)[0]
        apart = shortfalls(recorded, regime)
        shown = f"{100 * apart[chosen.words]:.1f}" if chosen.words in apart else "not recorded"
        print(f"| {regime} | {best.method} | {best.mean:.3f} | {chosen.name} | {shown} |", flush=True)
        choices = {"advice": chosen, **{f"always {name}": p for name, p in probes.probes.items()}}
        for name, choice in choices.items():
            if choice.words in apart:
                behind.setdefault(name, []).append(apart[choice.words])
    print(f"\n| choice | within {100 * NEAR:g} point of the best | mean behind, points |\n|---|---|---|")
    for name, values in behind.items():
        near = sum(value <= NEAR for value in values)
        print(f"| {name} | {near} of {len(values)} | {100 * fmean(values):.1f} |")


def words(grid: Grid, regime: str) -> list[str]:
    """What a user of the regime would give `advise`."""
    given = [*grid.common(regime), *shlex.split(grid.fixed.get(regime, ""))]
    return [*(grid.located(word) for word in given), f"seed={grid.seeds[0]}"]


def shortfalls(recorded: Comparison, regime: str) -> dict[str, float]:
    """By split and head, as a candidate writes them, how far the method that is nothing else is behind the
    best."""
    means = {score.method: score.mean for score in recorded.scores(regime)}
    common = {*recorded.grid.common(regime), *shlex.split(recorded.grid.fixed.get(regime, ""))}
    found = {}
    for entry in (search.entry for search in recorded.searches if search.entry.regime == regime):
        own = [word for word in entry.words if word.startswith(("split=", "head="))]
        if entry.method in means and not {*entry.words} - common - {*own}:
            found[" ".join(own)] = max(means.values()) - means[entry.method]
    return found


if __name__ == "__main__":
    main()
