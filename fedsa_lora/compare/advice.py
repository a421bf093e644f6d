"""Advice on the split to use, by a rule, from the results of runs on a user's own data.

The rule: ``soft`` stands unless another split is ahead of it by more than the noise; of those that are, the
best mean. Between sharing A and sharing B, where both are and neither is ahead of the other, that role is
shared in which the clients' changes agree more. What is not ahead of training alone by more than the noise
is not worth sending: then local only, unless fewer rounds than the run's were looked at, because what is
shared can catch up late. What does not beat always predicting a client's most frequent class is never
recommended. Noise is one standard error of the mean of paired differences over
clients; a lead within it decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

from fedsa_lora.exchange.measure import CLASSES, Measure
from fedsa_lora.report.wording import difference, listed, shown_gain
from fedsa_lora.runs.measures import Values, harmed, lead

ALONE, SOFT = "local only", "soft"
SHARES = {"share A": "A", "share B": "B"}  # the role whose agreement speaks for a candidate


@dataclass(frozen=True)
class Probe:
    """A candidate at its best rate: the primary measure on validation examples by client, and the bytes up by
    client and round."""

    name: str
    words: str
    lr: float
    values: Values
    bytes_up: float

    @property
    def mean(self) -> float:
        return fmean(self.values.values())


@dataclass(frozen=True)
class Evidence:
    """Results of the runs; ``agreement`` is the mean cosine between clients of what training alone changed,
    by role, from -1 to 1. ``majority``: that of always predicting a client's most frequent class, by client;
    empty where it is not known. ``looked``: rounds of each probe, of the ``rounds`` of a run."""

    probes: dict[str, Probe]
    agreement: dict[str, float]
    majority: Values = field(default_factory=dict)
    looked: int = 0
    rounds: int = 0
    measure: Measure = CLASSES[0]

    @property
    def partial(self) -> bool:
        """True where fewer rounds were looked at than a run has."""
        return self.looked < self.rounds

    def useless(self, name: str) -> bool:
        """True where a candidate does not beat always predicting the most frequent class."""
        if not self.majority:
            return False
        return self.merit(name) <= self.measure.merit(fmean(self.majority.values()))

    def merit(self, name: str) -> float:
        """The mean of a candidate, better when higher."""
        return self.measure.merit(self.probes[name].mean)

    def lead(self, one: str, other: str) -> tuple[float, float]:
        """Mean lead of one over the other, better when higher, and its noise."""
        mine, theirs = self.probes[one].values, self.probes[other].values
        return lead(mine, theirs, self.measure.higher_is_better)

    def harmed(self, name: str) -> float | None:
        """Share of clients that a candidate leaves worse off than training alone."""
        mine, alone = self.probes[name].values, self.probes[ALONE].values
        return harmed(mine, alone, self.measure.higher_is_better)

    def ahead(self, one: str, other: str) -> bool:
        """True where one leads the other by more than the noise."""
        lead, noise = self.lead(one, other)
        return lead > noise


@dataclass(frozen=True)
class Advice:
    """Candidate to run, None where nothing is worth it, and the reasons, a sentence each."""

    chosen: Probe | None
    reasons: list[str]


def advise(evidence: Evidence) -> Advice:
    """By the rule of this module."""
    chosen = _choice(evidence)
    about = [*_of_rounds(evidence), *_of_majority(evidence)]
    if chosen is None:
        return Advice(None, about)
    reasons = [_against_alone(evidence, chosen), *_of_agreement(evidence), *_within_noise(evidence, chosen)]
    return Advice(evidence.probes[chosen], [*about, *reasons])


def _choice(evidence: Evidence) -> str | None:
    """The candidate of the rule, or the best of those that may be recommended; None without any."""
    open_to_all = [name for name in evidence.probes if not (evidence.partial and name == ALONE)]
    sound = [name for name in open_to_all if not evidence.useless(name)]
    chosen = _by_rule(evidence)
    if chosen in sound:
        return chosen
    return max(sound, key=evidence.merit, default=None)


def _by_rule(evidence: Evidence) -> str:
    rivals = [name for name in evidence.probes if name not in (SOFT, ALONE) and evidence.ahead(name, SOFT)]
    best = max(rivals, key=evidence.merit, default=SOFT)
    if best in SHARES and set(SHARES) <= set(rivals):
        other = next(name for name in SHARES if name != best)
        agrees = evidence.agreement.get(SHARES[other], 0.0) > evidence.agreement.get(SHARES[best], 0.0)
        if agrees and not evidence.ahead(best, other):
            best = other
    return best if evidence.partial or evidence.ahead(best, ALONE) else ALONE


def _of_rounds(evidence: Evidence) -> list[str]:
    if not evidence.partial:
        return []
    return [
        f"This probe ran {evidence.looked} of {evidence.rounds} rounds: too few to recommend {ALONE}, as "
        f"sharing can catch up in later rounds. To be sure, leave out --rounds."
    ]


def _of_majority(evidence: Evidence) -> list[str]:
    useless = [name for name in evidence.probes if evidence.useless(name)]
    if not useless:
        return []
    if len(useless) == len(evidence.probes):
        return [
            "None of these beats always predicting the most frequent class, so none is recommended: train "
            "longer (federation.rounds, train.steps), or with more data."
        ]
    return [f"No better than always predicting the most frequent class: {listed(useless)}."]


def _against_alone(evidence: Evidence, chosen: str) -> str:
    measure = evidence.measure
    if chosen == ALONE:
        best = max((name for name in evidence.probes if name != ALONE), key=evidence.merit)
        lead, noise = evidence.lead(best, ALONE)
        return (
            f"No candidate is clearly better than training alone: {best} gains "
            f"{shown_gain(lead, measure)}, with a noise of {difference(noise, measure)}."
        )
    lead, noise = evidence.lead(chosen, ALONE)
    worse = evidence.harmed(chosen) or 0.0
    side = "below" if measure.higher_is_better else "above"
    return (
        f"{chosen} gains {shown_gain(lead, measure)} over training alone, with a noise of "
        f"{difference(noise, measure)}; {worse:.0%} of the clients are {side} what they reach alone."
    )


def _of_agreement(evidence: Evidence) -> list[str]:
    if not {"A", "B"} <= evidence.agreement.keys():
        return []
    a, b = evidence.agreement["A"], evidence.agreement["B"]
    common = "A" if a > b else "B"
    return [
        f"Trained alone, clients change A with a mean pairwise cosine of {a:.2f}, B with {b:.2f}: they "
        f"agree more on {common}."
    ]


def _within_noise(evidence: Evidence, chosen: str) -> list[str]:
    close = [
        name for name in evidence.probes
        if name != chosen and not evidence.ahead(chosen, name)
    ]  # fmt: skip
    return [f"Not better than these by more than the noise: {listed(close)}."] if close else []
