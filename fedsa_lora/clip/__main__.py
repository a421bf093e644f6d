"""The five checks of the module, or with ``--counts`` its table of parameters."""

from __future__ import annotations

import argparse
import sys


def main() -> int:
    """Print each check with its measurements; returns 1 where one fails."""
    parser = argparse.ArgumentParser(prog="python -m fedsa_lora.clip", description=__doc__)
    parser.add_argument(
        "--counts",
        action="store_true",
        help="print the numbers of trainable parameters of CLIP ViT-B/32 instead",
    )
    if parser.parse_args().counts:
        from fedsa_lora.clip.counts import table

        print(table())
        return 0
    from fedsa_lora.clip.checks import checks

    failed = 0
    for number, check in enumerate(checks(), start=1):
        failed += not check.passed
        print(f"{number} {check.title}: {'passed' if check.passed else 'FAILED'} ({check.measured})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
