"""Is advice any good?

python benchmarks/advice.py --grid methods --record docs/results/runs.jsonl --recorded

For each regime of a grid (or those that are named) the advice is found by the validation parts of its first
seed, as `fedsa-lora advise` does, and how far it is on the test parts behind the best method of all seeds is
read from a recorded comparison: prints that, and how often the advice, and each candidate if it were always
chosen, is within a point of the best. With --recorded the probes are the comparison's own runs of that seed,
which are those that `advise` makes by default. Without, they are run, for --rounds if given, and kept: six
candidates at three rates for each regime.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from rich.console import Console

from fedsa_lora.compare.advice import advise
from fedsa_lora.compare.comparison import Comparison
from fedsa_lora.compare.grid import Grid, read_grid
from fedsa_lora.compare.making import at_once
from fedsa_lora.compare.probe import CANDIDATES, evidence, probe, probe_grid
from fedsa_lora.compare.search import Search

NEAR = 0.01 + 1e-9  # of fractions, some differ by a point exactly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("regimes", nargs="*", help="default: all that are recorded")
    parser.add_argument("--grid", default="personalisation")
    parser.add_argument("--record", type=Path, help="the runs (default: runs/compare-GRID/runs.jsonl)")
    parser.add_argument("--recorded", action="store_true", help="run nothing: probes are of the comparison")
    parser.add_argument("--rounds", type=int, help="of each probe (default: all)")
    parser.add_argument("--to", type=Path, default=Path("runs/advice"))
    parser.add_argument("--processes", type=int, default=at_once())
    options = parser.parse_args()
    grid = read_grid(options.grid)
    folder = Path("runs") / f"compare-{options.grid}"
    recorded = Comparison.recorded(grid, folder, options.record)
    behind: dict[str, list[float]] = {}
    print("| regime | best | mean | advice | behind, points |\n|---|---|---|---|---|")
    for regime in options.regimes or [name for name in recorded.regimes if recorded.scores(name)]:
        if options.recorded:
            probes = evidence(candidates(recorded, regime), recorded.record)
        else:
            short = probe_grid(words(grid, regime), options.rounds)
            probes = probe(short, options.to / regime, options.processes, Console())
        chosen, best = advise(probes).chosen, recorded.scores(regime)[0]
        assert chosen is not None, f"no candidate beats the most frequent class in {regime}"
        apart = shortfalls(recorded, regime)
        shown = f"{100 * apart[chosen.words]:.1f}" if chosen.words in apart else "not recorded"
        print(f"| {regime} | {best.method} | {best.mean:.3f} | {chosen.name} | {shown} |", flush=True)
        choices = {"advice": chosen, **{f"always {name}": p for name, p in probes.probes.items()}}
        for name, choice in choices.items():
            if choice.words in apart:
                behind.setdefault(name, []).append(apart[choice.words])
    print("\n| choice | within a point of the best | mean behind, points |\n|---|---|---|")
    for name, values in behind.items():
        near = sum(value <= NEAR for value in values)
        print(f"| {name} | {near} of {len(values)} | {100 * fmean(values):.1f} |")


def words(grid: Grid, regime: str) -> list[str]:
    """What a user of the regime would give `advise`."""
    given = [*grid.common(regime), *shlex.split(grid.fixed.get(regime, ""))]
    return [*(grid.located(word) for word in given), f"seed={grid.seeds[0]}"]


def plain(recorded: Comparison, regime: str) -> dict[str, Search]:
    """By split and head, as a candidate writes them, the search of the method that is nothing else."""
    common = {*recorded.grid.common(regime), *shlex.split(recorded.grid.fixed.get(regime, ""))}
    found = {}
    for search in (search for search in recorded.searches if search.entry.regime == regime):
        own = [word for word in search.entry.words if word.startswith(("split=", "head="))]
        if not {*search.entry.words} - common - {*own}:
            found[" ".join(own)] = search
    return found


def candidates(recorded: Comparison, regime: str) -> list[Search]:
    """The searches of a comparison that `advise` would make, under the names that it has for them."""
    head, searches = shlex.split(recorded.grid.fixed.get(regime, "")), plain(recorded, regime)
    found = []
    for name, own in CANDIDATES.items():
        split, own_head = own.split()
        if (search := searches.get(f"{split} {head[0] if head else own_head}")) is not None:
            found.append(replace(search, entry=replace(search.entry, method=name)))
    return found


def shortfalls(recorded: Comparison, regime: str) -> dict[str, float]:
    """By split and head, how far a method is behind the best."""
    means = {score.method: score.mean for score in recorded.scores(regime)}
    return {
        own: max(means.values()) - means[search.entry.method]
        for own, search in plain(recorded, regime).items()
        if search.entry.method in means
    }


if __name__ == "__main__":
    main()
