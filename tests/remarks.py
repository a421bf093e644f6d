"""What the row of a round tells of answers that were not as they should be."""

from typing import Any

from fedsa_lora.runs.outcomes import FAILURES
from strategies.round.admission import Remark


def remarks(row: dict[str, Any], *kinds: str) -> list[Remark]:
    """Those of some kinds; of all without any."""
    found = [Remark(**remark) for remark in row["remarks"]]
    return [remark for remark in found if not kinds or remark.kind in kinds]


def failures_of(row: dict[str, Any]) -> list[str]:
    """A line for each answer that was not there to go on with."""
    return list(map(str, remarks(row, *FAILURES)))
