"""From the updates of one mean to the next common vector, and how exact that mean is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import Layout
from fedsa_lora.exchange.split import SplitPolicy
from strategies.round.bounds import outlier
from strategies.round.downlink import Downlink
from strategies.rules.exactness import Frozen, aggregation_error
from strategies.rules.flower import Rule, sound_step
from strategies.rules.updates import Update


@dataclass(frozen=True)
class Combiner:
    """Takes updates into the vector that they were made from; its fields are those of ``FedSA``."""

    rule: Rule
    split: SplitPolicy
    layout: Layout
    frozen: Frozen | None

    def __call__(self, round_: int, downlink: Downlink, updates: Sequence[Update]) -> float | None:
        """Publish what the rule makes of the downlink's vector. The aggregation error, where it is known.

        Raises RunError for what is not finite, with the update that is out of the ordinary if one is.
        """
        before = downlink.vector
        try:
            step = sound_step(self.rule, self.rule.inner, round_, before, updates)
        except RunError as fault:
            words = [str(fault), outlier(updates)]
            raise RunError("; ".join(filter(None, words))) from fault
        downlink.publish(round_, step.vector, step.merge, [update.client for update in updates])
        return aggregation_error(self.split, self.layout, self.frozen, before, updates)
