"""Can two methods of a recorded comparison be told apart?

python benchmarks/paired.py vision dirichlet_05-cifar "FedSA (share A)" "local only" --to docs/results/vision

Takes the differences of accuracy over (client, seed) pairs, each method at the rate that the search chose:
their mean with its 95 % t interval, and p of Wilcoxon's two-sided signed-rank test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fedsa_lora.compare.comparison import Comparison
from fedsa_lora.compare.grid import read_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("grid")
    parser.add_argument("regime")
    parser.add_argument("methods", nargs=2)
    parser.add_argument("--to", type=Path, required=True, help="folder of the comparison")
    options = parser.parse_args()
    recorded = Comparison.recorded(read_grid(options.grid), options.to)
    found = recorded.lead(options.regime, *options.methods)
    mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
    names = " - ".join(options.methods)
    print(f"{names}: {mean:+.1f} points [{low:.1f}, {high:.1f}], p {found.p:.2g}")


if __name__ == "__main__":
    main()
