"""The numbers that a client may report, each with its range: no other gets into a row, a table or a mean.

What training and the references of a run report is listed here, for every method; what a task measures it
declares itself, in its ``measures``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedsa_lora.errors import WireError
from fedsa_lora.exchange.measure import ENTROPY, SHARE, Measure, Range

LOSS = "loss"  # of training, in the range of the task's measure of that name, else of a cross-entropy
TRAINING: Mapping[str, Range] = {  # beside the loss
    "steps": (0.0, 1e15),
    "tokens": (0.0, 1e15),
    "padded_tokens": (0.0, 1e15),
    "seconds": (0.0, 1e9),
}
ATTACKED = Measure(
    "attack_success", SHARE, False, "percent"
)  # beside the measures of a task that is attacked


@dataclass(frozen=True)
class Numbers:
    """The numbers of a phase's report: ``always`` those of any client, ``measured`` those of a client with
    examples that it was measured on, and ``needed`` which of them there must be."""

    always: Mapping[str, Range] = field(default_factory=dict)
    measured: Mapping[str, Range] = field(default_factory=dict)
    needed: tuple[str, ...] = ()

    def check(self, report: Mapping[str, float], measured: int) -> None:
        """Raise WireError unless a report has what is needed, and nothing that is unknown, out of its range,
        or of no example."""
        allowed = {**self.always, **self.measured} if measured else self.always
        if missing := [name for name in self.needed if name in allowed and name not in report]:
            raise WireError(f"its report lacks {missing}")
        if unfounded := [name for name in report if name in self.measured and name not in allowed]:
            raise WireError(f"reports {unfounded}, measured on no example")
        for name, value in report.items():
            if name not in allowed:
                known = ", ".join(sorted(allowed)) or "none"
                raise WireError(
                    f"reports {name[:40]!r}, expected one of: {known}; a custom task declares its numbers "
                    f"in its measures"
                )
            low, high = allowed[name]
            if not low <= value <= high:
                raise WireError(f"reports {name!r} of {value:g}, expected {low:g} to {high:g}")


def of_training(measures: Sequence[Measure], before: bool, signed: bool = False) -> Numbers:
    """Numbers that the answer to a training message may report, with a task that has these ``measures``, the
    primary one first. ``before``: that of the client's own model before aggregation was asked. ``signed``:
    what is made smaller may be below 0."""
    primary = measures[0]
    low, high = _ranges(measures).get(LOSS, ENTROPY)
    always = {**TRAINING, LOSS: (-high if signed else low, high)}
    return Numbers(always, {primary.before: primary.range} if before else {}, needed=(LOSS,))


def of_evaluation(measures: Sequence[Measure], alone: bool) -> Numbers:
    """The same of an evaluation: of a client without examples to be measured on, nothing. ``alone``: what a
    client reaches alone was asked. References are in the primary measure."""
    primary, declared = measures[0], _ranges(measures)
    references = [primary.of_global, "majority"]
    if alone:
        references.append("local_only")
    needed = (LOSS, primary.name) if LOSS in declared else (primary.name,)
    return Numbers(measured=declared | dict.fromkeys(references, primary.range), needed=needed)


def _ranges(measures: Sequence[Measure]) -> dict[str, Range]:
    return {measure.name: measure.range for measure in measures}
