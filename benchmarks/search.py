"""The search for learning rates, replayed on recorded runs in which all rates were tried.

    python benchmarks/search.py [--record docs/results/runs.jsonl]

The first table: runs that the rule of `fedsa_lora.compare.search` leaves out of each grid, the share of the
grid's runs and of their recorded seconds of training that this is, and for how many methods the rate stays
that of the full search. The second: what stopping runs of the search would save, where a rate is behind the
best of the others by so many points at an evaluated round. It takes the recorded curves, which are of the
test part, for those of the validation part, which a search would have to measure as well.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from fedsa_lora.compare.comparison import Comparison
from fedsa_lora.compare.grid import Run, read_grid
from fedsa_lora.compare.record import Measured, Record
from fedsa_lora.compare.search import Search
from fedsa_lora.runs.reading import Row, read_jsonl

NOT_RECORDED: Row = {"error": "not recorded, as the full search chose another rate"}
GRIDS = ("personalisation", "methods")
STOPS = [(3, 5), (3, 20), (3, 40), (6, 5), (6, 10), (6, 15), (9, 5), (9, 10)]  # round, points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--record", type=Path, default=Path("docs/results/runs.jsonl"))
    file = parser.parse_args().record
    rows: dict[object, Row] = {(tuple(row["words"]), row["lr"], row["seed"]): row for row in read_jsonl(file)}
    every: dict[object, tuple[Search, Record]] = {}
    print("| grid | runs | left out | of runs | of seconds | same rate |\n|---|---|---|---|---|---|")
    for name in GRIDS:
        known = Comparison.recorded(read_grid(name), Path("runs"), file)
        every |= {search.entry.words: (search, known.record) for search in known.searches}
        total, left_out, same = 0.0, 0.0, 0
        runs, fewer = 0, 0
        for search in known.searches:
            full = {run.key: run for run in [*tried(search), *chosen(search, known.record)]}
            again = replayed(search, rows)
            made = {run.key for run in search.made(again)}
            runs, fewer = runs + len(full), fewer + len(full.keys() - made)
            seconds = {key: result(known.record, run).seconds for key, run in full.items()}
            total += sum(seconds.values())
            left_out += sum(seconds[key] for key in seconds.keys() - made)
            same += search.best(again) == search.best(known.record)
        shares = f"{fewer / runs:.1%} | {left_out / total:.1%}"
        print(f"| {name} | {runs} | {fewer} | {shares} | {same} of {len(known.searches)} |")
    print("\n| stopped at round | behind by points | of the search | another rate |\n|---|---|---|---|")
    for at, points in STOPS:
        saved, wrong = stopping([*every.values()], at, points / 100)
        print(f"| {at} | {points} | {saved:.1%} | {wrong} of {len(every)} |")


def replayed(search: Search, rows: dict[object, Row]) -> Record:
    """A record of those runs alone that the search asks for."""
    with tempfile.TemporaryDirectory() as folder:
        record = Record(Path(folder) / "runs.jsonl")
        while needed := search.needed(record):
            for run in needed:
                record.add(run, rows.get(run.key, NOT_RECORDED))
    return record


def stopping(known: list[tuple[Search, Record]], at: int, margin: float) -> tuple[float, int]:
    """The share of the searches' rounds that is saved, and the number of methods whose rate is stopped."""
    spent, saved, wrong = 0, 0, 0
    for search, record in known:
        curves = {run.lr: curve(result(record, run)) for run in tried(search)}
        best = max(values[at] for values in curves.values())
        stopped = [lr for lr, values in curves.items() if best - values[at] > margin]
        last = max(next(iter(curves.values())))
        spent += last * len(curves)
        saved += (last - at) * len(stopped)
        wrong += search.best(record) in stopped
    return saved / spent, wrong


def curve(run: Measured) -> dict[int, float]:
    """The mean over clients by round, better when higher."""
    return {point["round"]: run.measure.merit(point[run.measure.name]) for point in run.curve}


def tried(search: Search) -> list[Run]:
    """Every rate on the first seed."""
    return [Run(search.entry, lr, search.seeds[0]) for lr in search.rates]


def chosen(search: Search, record: Record) -> list[Run]:
    """The rate of the full search on every seed."""
    best = search.best(record)
    assert best is not None, f"{search.entry.method}: not every rate is recorded"
    return search.at(best)


def result(record: Record, run: Run) -> Measured:
    found = record.result(run)
    assert found is not None, f"{run.key} is not recorded"
    return found


if __name__ == "__main__":
    main()
