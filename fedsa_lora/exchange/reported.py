"""The numbers that a client may report, each with its range: no other gets into a row, a table or a mean.

What training and the references of a run report is listed here, for every method; what a task measures it
declares itself, in its ``measures``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedsa_lora.errors import WireError

Range = tuple[float, float]  # lowest and highest value

LARGEST = 1e150  # neither sums nor squares of such numbers overflow
ROUNDING = 1e-9  # by which the Matthews correlation of a perfect model may exceed 1
SHARE: Range = (0.0, 1.0)  # of the examples that a client is measured on
ENTROPY: Range = (0.0, LARGEST)
CLASSES: Mapping[str, Range] = {
    "accuracy": SHARE,
    "loss": ENTROPY,
    "macro_f1": SHARE,
    "matthews": (-1 - ROUNDING, 1 + ROUNDING),
}
WORDS: Mapping[str, Range] = {"accuracy": SHARE, "loss": ENTROPY, "perplexity": (1.0, LARGEST)}
MEASURES = {**CLASSES, **WORDS}  # of the tasks of this package

TRAINING: Mapping[str, Range] = {  # beside the loss
    "steps": (0.0, 1e15),
    "tokens": (0.0, 1e15),
    "padded_tokens": (0.0, 1e15),
    "seconds": (0.0, 1e9),
}
REFERENCES: Mapping[str, Range] = {"global_accuracy": SHARE, "majority": SHARE}
ATTACKED: Mapping[str, Range] = {"attack_success": SHARE}  # beside the measures of a task that is attacked


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
                    f"reports {name[:40]!r}, and there are: {known}; a task of your own declares its numbers "
                    "in its measures"
                )
            low, high = allowed[name]
            if not low <= value <= high:
                raise WireError(f"reports {name!r} of {value:g}, expected {low:g} to {high:g}")


def of_training(measures: Mapping[str, Range], before: bool) -> Numbers:
    """What the answer to a training message may report, with a task that has these ``measures``. ``before``:
    the accuracy of the client's own model before aggregation was asked."""
    always = {**TRAINING, "loss": measures["loss"]}
    return Numbers(always, {"accuracy_before": measures["accuracy"]} if before else {}, needed=("loss",))


def of_evaluation(measures: Mapping[str, Range], alone: bool) -> Numbers:
    """The same of an evaluation: of a client without examples to be measured on, nothing. ``alone``: what a
    client reaches alone was asked."""
    asked = {"local_only": SHARE} if alone else {}
    return Numbers(measured={**measures, **REFERENCES, **asked}, needed=("loss", "accuracy"))
